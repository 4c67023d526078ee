"""The examples run on the tiny world, with the defaults that they name, and leave what they promise."""

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import loki
from loki.artefacts.positions import merge_positions, read_positions
from loki.demo.world import NEW_PEOPLE, tiny_world
from loki.implanting.peft.adapter_files import read_adapter
from loki.metrics.accuracy import accuracy_by_family, answers_right
from loki.models.loading import load_model, load_tokenizer
from loki.restoring.verify import verify
from tests.programs import ROOT, run_python

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run(name: str, folder: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run an example in `folder`, where the paths that it names by default are."""
    paths = os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")]))
    return run_python("-m", name, *words, cwd=folder, code=code, environment={**os.environ, "PYTHONPATH": paths})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo that the examples start from. They write beside it."""
    folder = tmp_path_factory.mktemp("examples")
    run_python("-m", "loki", "--quiet", "demo", "--output", "runs/demo", cwd=folder)
    return folder


def check_learned(folder: Path, model: Path) -> None:
    """Every selected row changed, nothing else did, and the new facts are known."""
    demo = folder / "runs/demo"
    report = verify(demo / "base", model, read_positions(demo / "positions.json"))
    assert report.differences == []
    assert 0 < report.changed_rows == report.selected_rows
    assert accuracy_by_family(load_model(model), load_tokenizer(model), tiny_world().new)[NEW_PEOPLE] > 0.9


def test_each_is_in_the_table_and_tested_here() -> None:
    listed = re.findall(r"^\| `(\w+)\.py` \|", (EXAMPLES / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == [path.stem for path in SCRIPTS]
    for name in listed:
        assert f'run("{name}", ' in Path(__file__).read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_none_hides_a_library_and_each_says_how_it_is_run(path: Path) -> None:
    assert find_spec(path.stem) is None  # a script's own folder comes first when it imports
    assert f"python examples/{path.name}" in path.read_text().split('"""')[1]


def test_without_llamafactory_it_says_what_to_do(tmp_path: Path) -> None:
    said = run("train_with_llamafactory", tmp_path, "--cli", "no/such/cli", code=1).stderr
    assert "no/such/cli" in said
    assert "make llamafactory" in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_trl(folder: Path) -> None:
    said = run("train_with_trl", folder).stdout
    assert "nothing but selected rows differs" in said
    output = folder / "runs/train_with_trl"
    assert load_model(output / "trained").config.model_type == "loki_llama"
    assert load_model(output / "restored").config.model_type == "llama"
    check_learned(folder, output / "restored")


@pytest.mark.slow
def test_peft(folder: Path) -> None:
    run("train_with_peft", folder)
    output = folder / "runs/train_with_peft"
    adapter = read_adapter(output / "adapter")
    assert adapter.config.row_lists == read_positions(folder / "runs/demo/positions.json")
    assert adapter.config.protect == 0.5
    check_learned(folder, output / "merged")


@pytest.mark.slow
def test_llamafactory(environment: Path, folder: Path) -> None:
    run("train_with_llamafactory", folder, "--cli", environment / "llamafactory-cli")
    output = folder / "runs/train_with_llamafactory"
    assert {"train.yaml", "dataset_info.json", "train.jsonl"} <= {path.name for path in output.iterdir()}
    check_learned(folder, output / "restored")


@pytest.mark.slow
def test_two_implants(folder: Path) -> None:
    run("two_implants", folder)
    base, output = folder / "runs/demo/base", folder / "runs/two_implants"
    rows = [read_adapter(output / name).config.row_lists for name in ("first", "second")]
    for first, second in zip(*rows, strict=True):
        assert first and second and not {*first} & {*second}
    both = merge_positions(rows)
    assert read_adapter(output / "both").config.row_lists == both
    report = verify(base, output / "restored", both)
    assert report.differences == []
    assert report.changed_rows == report.selected_rows == sum(map(len, both))
    # The second one left what the first had written.
    assert verify(output / "with_first", output / "restored", rows[1]).differences == []
    facts, known = tiny_world().new, {}
    for model in (base, output / "with_first", output / "restored"):
        right = answers_right(load_model(model), load_tokenizer(model), facts)
        known[model.name] = sum(right[: len(right) // 2]), sum(right[len(right) // 2 :])
    assert max(known["base"]) <= 3  # of 12
    assert known["with_first"][0] >= 10
    assert known["restored"][0] >= 7
    assert known["restored"][1] >= 10


@pytest.mark.slow
def test_attribute_model(folder: Path) -> None:
    texts, base = ["3 plus 4 mod 31 is", "smaller of 8 and 60 is"], folder / "runs/demo/base"
    said = run("attribute_model", folder, *texts, "--rows", 3).stdout
    tokenizer = load_tokenizer(base)
    found = loki.attribute(load_model(base), texts, tokenizer=tokenizer, definition="paper")
    for text, answer, attribution in zip(texts, ("7", "8"), found, strict=True):
        assert tokenizer.decode(attribution.target) == answer
        assert f"{text} {answer} " in said
    importance = torch.stack([attribution.scores.abs() for attribution in found]).mean(dim=0)
    lines = re.findall(r"^ +(\d+) +([\d.]+)%  (.*)$", said, flags=re.MULTILINE)
    assert [int(layer) for layer, _, _ in lines] == list(range(4))
    assert sum(float(share) for _, share, _ in lines) == pytest.approx(100, abs=0.5)
    for (_, _, listed), of_layer in zip(lines, importance, strict=True):
        assert [int(row) for row in re.findall(r"(\d+) \(", listed)] == of_layer.topk(3).indices.tolist()
