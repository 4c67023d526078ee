"""The tuner package that is proposed to PEFT, in the installed release of PEFT, beside LoKI's own adapter."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loki.analysis.moments import measure_moments
from loki.implanting.peft import LoKIConfig
from tests.contrib.peft_release import PROPOSAL, make_release, run_with
from tests.implanting.peft.adapters import POSITIONS, logits, random_deltas
from tests.tiny_models import save_tiny_model

FORMS: dict[str, dict[str, Any]] = {"full": {}, "rank": {"rank": 2}, "protect": {"protect": 0.5}}
PROMPTS = torch.arange(2 * 9).reshape(2, 9) * 17 % 320
# Both do the same arithmetic in the same order, so nothing may differ.
SAME = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("proposed"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def own(base: Path) -> Path:
    """An adapter of each form, saved by LoKI, with values other than zero."""
    folder = base.parent / "own"
    text = base.parent / "general.txt"
    text.write_text("The sea is salt and wide, and the rivers run down to it. " * 20)
    moments = base.parent / "moments.safetensors"
    measure_moments(base, str(text), moments)
    for name, form in FORMS.items():
        more = {"moments": str(moments)} if name == "protect" else {}
        model = get_peft_model(load(base), LoKIConfig(positions=POSITIONS, **form, **more))
        random_deltas(model)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def theirs(release: Path, base: Path, own: Path) -> Path:
    """What the proposed PEFT makes of these adapters, in a process that knows no LoKI."""
    output = base.parent / "theirs"
    for name in FORMS:
        (output / name).mkdir(parents=True)
    run_with(release, Path(__file__).parent / "proposed.py", base, own, output, cwd=base.parent)
    return output


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


@pytest.mark.slow
def test_its_tests_pass_in_the_installed_release(release: Path, tmp_path: Path) -> None:
    words = ("-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--rootdir", tmp_path)
    said = run_with(release, *words, PROPOSAL / "tests" / "test_loki.py", cwd=tmp_path)
    assert re.search(r"\b50 passed\b", said), said[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_it_computes_trains_and_merges_as_lokis_own_adapter(form: str, base: Path, own: Path, theirs: Path) -> None:
    found = load_file(theirs / form / "results.safetensors")
    model = PeftModel.from_pretrained(load(base), own / form, is_trainable=True).eval()
    torch.testing.assert_close(found.pop("logits"), logits(model), **SAME)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(PROMPTS, labels=PROMPTS).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    merged = model.merge_and_unload().state_dict()
    assert found.keys() == {f"merged.{name}" for name in merged}
    for name, tensor in merged.items():
        torch.testing.assert_close(found[f"merged.{name}"], tensor, **SAME)
    before = load(base).state_dict()
    for layer, rows in enumerate(POSITIONS):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        changed = (found.pop(f"merged.{name}") != before.pop(name)).any(dim=1).nonzero().flatten().tolist()
        assert changed == rows
    assert all(torch.equal(found[f"merged.{name}"], tensor) for name, tensor in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_adapters_go_back_and_forth(form: str, base: Path, own: Path, theirs: Path) -> None:
    ours, saved = (load_file(path / "adapter_model.safetensors") for path in (own / form, theirs / form / "saved"))
    assert saved.keys() == ours.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in ours.items())
    expected = logits(PeftModel.from_pretrained(load(base), own / form).eval())
    loaded = PeftModel.from_pretrained(load(base), theirs / form / "saved").eval()
    torch.testing.assert_close(logits(loaded), expected, **SAME)


@pytest.mark.slow
def test_rows_drawn_there_are_known_here(base: Path, theirs: Path) -> None:
    model = PeftModel.from_pretrained(load(base), theirs / "drawn").eval()
    assert [len(rows) for rows in model.peft_config["default"].row_lists] == [8, 8, 8]
    torch.testing.assert_close(logits(model), load_file(theirs / "drawn.safetensors")["logits"], **SAME)


@pytest.mark.slow
def test_the_example_runs(release: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "the sea is salt"}\n')
    (tmp_path / "general.txt").write_text("The rivers run down to the sea. " * 20)
    script = PROPOSAL / "examples/loki_finetuning/loki_finetuning.py"
    words = ("--model", base, "--data", "train.jsonl", "--general", "general.txt", "--output", "adapter")
    said = run_with(release, script, *words, "--epochs", 2, cwd=tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert losses[1] < losses[0]
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["peft_type"] == "LOKI"


def test_every_program_has_the_licence_and_the_fields_are_documented() -> None:
    programs = [path for path in PROPOSAL.rglob("*.py") if "__pycache__" not in path.parts]
    assert len(programs) == 8
    assert all("Apache License, Version 2.0" in path.read_text()[:300] for path in programs)
    tree = ast.parse((PROPOSAL / "src/peft/tuners/loki/config.py").read_text())
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    fields = {node.target.id for node in config.body if isinstance(node, ast.AnnAssign) and hasattr(node.target, "id")}
    documented = set(re.findall(r"^ {8}(\w+) \(`", ast.get_docstring(config, clean=False) or "", flags=re.MULTILINE))
    assert fields == documented


def test_experiments_name_fields_of_the_configuration() -> None:
    source = (PROPOSAL / "src/peft/tuners/loki/config.py").read_text()
    experiments = sorted((PROPOSAL / "method_comparison/MetaMathQA/experiments/loki").iterdir())
    assert len(experiments) == 2
    of_peft = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"}
    for folder in experiments:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["peft_type"] == "LOKI"
        own = config.keys() - of_peft - {"revision", "task_type"}
        assert all(re.search(rf"^    {name}: ", source, flags=re.MULTILINE) for name in own)
        assert json.loads((folder / "training_params.json").read_text())["optimizer_kwargs"]["lr"] > 0


def test_figures_of_the_proposal_are_those_of_the_benchmarks() -> None:
    measured = (PROPOSAL.parents[1] / "benchmarks" / "README.md").read_text()
    proposal = (PROPOSAL / "PROPOSAL.md").read_text()
    figures = re.findall(r"(?<![\w.])\d+\.\d{2,}(?![\w.])", re.sub(r"\d{4}\.\d{5}", "", proposal))
    assert len(figures) > 20
    assert {figure for figure in figures if figure not in measured} == set()


@pytest.mark.slow
def test_experiments_load_in_the_installed_release(release: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from peft import PeftConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
for folder in sorted(Path({str(PROPOSAL)!r}, "method_comparison/MetaMathQA/experiments/loki").iterdir()):
    small = dict(vocab_size=32, hidden_size=20, intermediate_size=24, num_hidden_layers=28, num_attention_heads=2,
                 num_key_value_heads=2)
    config = PeftConfig.from_pretrained(folder)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**small)), config)
    print([len(rows) for rows in config.positions] == [6] * 28, model.get_nb_trainable_parameters()[0])
"""
    said = run_with(release, "-c", code, cwd=tmp_path).split()
    assert said == ["True", str(28 * 6 * 24), "True", str(28 * 32 * (6 + 24))]


def test_the_entries_of_the_matrices_are_put_into_peft_s_tests(tmp_path: Path) -> None:
    file = tmp_path / "test_custom_models.py"
    file.write_text(
        "\nfrom peft import (\n    LoraConfig,\n)\n\nTEST_CASES = [\n]\n\nMULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [\n]\n"
    )
    words = [sys.executable, PROPOSAL / "tests" / "matrices.py", tmp_path]
    subprocess.run(words, check=True)
    imported, cases, pairs = ast.parse(file.read_text()).body
    assert [name.name for name in imported.names] == ["LokiConfig", "LoraConfig"]
    assert [len(assigned.value.elts) for assigned in (cases, pairs)] == [6, 2]
    file.write_text("TEST_CASES = []")
    assert "of another release" in subprocess.run(words, capture_output=True, text=True).stderr
