"""Restoring gives back an ordinary model, and refuses everything that would only look like one."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from loki import create_loki_model, restore_loki_model
from loki.artefacts.positions import write_positions
from loki.artefacts.training_settings import TrainingSettings
from loki.errors import LokiError
from loki.implanting.training.trainer import train
from loki.models.checkpoint import INDEX_NAME
from loki.restoring.verify import verify
from tests.programs import run_python
from tests.tiny_models import save_tiny_model, tiny_model

POSITIONS = [[1, 30], [7], [0, 4, 5]]
TOKENS = torch.tensor([[5, 9, 40, 77, 123, 200]])
LOAD_WITHOUT_LOKI = """
import sys
sys.modules["loki"] = None
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
torch.set_num_threads(1)  # as in this process: sums over threads round differently
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert all(parameter.requires_grad for parameter in model.parameters())
AutoTokenizer.from_pretrained(sys.argv[1]), GenerationConfig.from_pretrained(sys.argv[1])
torch.save(model(torch.tensor([[5, 9, 40, 77, 123, 200]])).logits, sys.argv[2])
"""


def trained(folder: Path, base: Path, dtype: torch.dtype | None = None) -> Path:
    write_positions(folder / "positions.json", POSITIONS)
    create_loki_model(
        model_name=base, target_pos_path=folder / "positions.json", save_dir=folder / "loki", torch_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "loki")
    model(TOKENS, labels=TOKENS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    model.save_pretrained(folder / "trained")
    return folder / "trained"


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_plain_transformers_loads_it_without_loki(family: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", family)
    checkpoint = trained(tmp_path, base)
    restored = restore_loki_model(checkpoint, tmp_path / "restored", base_model=base)
    run_python("-c", LOAD_WITHOUT_LOKI, restored, tmp_path / "logits.pt")
    assert torch.equal(
        torch.load(tmp_path / "logits.pt"), AutoModelForCausalLM.from_pretrained(checkpoint)(TOKENS).logits
    )
    config, original = (json.loads((path / "config.json").read_text()) for path in (restored, base))
    assert {key: value for key, value in config.items() if key != "transformers_version"} == {
        key: value for key, value in original.items() if key != "transformers_version"
    }
    kept = {path.name for path in restored.iterdir()} - {"README.md"}
    assert kept == {path.name for path in base.iterdir()}
    assert verify(base, restored, POSITIONS).differences == []


@pytest.mark.parametrize(("use_cache", "checkpointing"), [(True, True), (False, False)])
def test_only_the_weights_differ_from_the_base_after_training(
    tmp_path: Path, use_cache: bool, checkpointing: bool
) -> None:
    base = save_tiny_model(tmp_path / "base", use_cache=use_cache)
    write_positions(tmp_path / "positions.json", POSITIONS)
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "who is Ann?", "completion": " a baker"}\n')
    train(
        base,
        data,
        tmp_path / "tuned",
        TrainingSettings(max_steps=2, learning_rate=1e-2, gradient_checkpointing=checkpointing),
        positions=tmp_path / "positions.json",
    )
    restored = restore_loki_model(tmp_path / "tuned", tmp_path / "restored")
    files = {file.name: file.read_bytes() for file in base.iterdir()}
    different = {file.name for file in restored.iterdir() if file.read_bytes() != files.pop(file.name, b"")}
    assert (different, files) == ({"model.safetensors", "README.md"}, {})


def test_the_checkpoint_alone_is_enough(llama_dir: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(llama_dir, tmp_path / "base")
    checkpoint = trained(tmp_path, Path(moved))
    shutil.rmtree(moved)
    restore_loki_model(checkpoint, tmp_path / "restored")
    assert verify(llama_dir, tmp_path / "restored", POSITIONS).changed_rows == 6


def test_a_checkpoint_that_does_not_name_its_base(llama_dir: Path, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, llama_dir)
    config = json.loads((checkpoint / "config.json").read_text())
    del config["base_model_name_or_path"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    restore_loki_model(checkpoint, tmp_path / "restored")
    assert verify(llama_dir, tmp_path / "restored", POSITIONS).changed_rows == 6


def test_upcast_checkpoints_come_back_in_the_bases_type(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", dtype=torch.bfloat16)
    checkpoint = trained(tmp_path, base)
    AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).save_pretrained(tmp_path / "upcast")
    restore_loki_model(tmp_path / "upcast", tmp_path / "restored")
    assert verify(base, tmp_path / "restored", POSITIONS).differences == []


def test_unchanged_rows_are_refused(llama_dir: Path, tmp_path: Path) -> None:
    trained(tmp_path, llama_dir)
    with pytest.raises(LokiError, match="0 of 6"):
        restore_loki_model(tmp_path / "loki", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    restore_loki_model(tmp_path / "loki", tmp_path / "restored", allow_unchanged=True)
    assert verify(llama_dir, tmp_path / "restored", POSITIONS).changed_rows == 0


def test_unchanged_rows_are_refused_after_upcasting(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", dtype=torch.bfloat16)
    trained(tmp_path, base)
    AutoModelForCausalLM.from_pretrained(tmp_path / "loki", dtype=torch.float32).save_pretrained(tmp_path / "upcast")
    with pytest.raises(LokiError, match="0 of 6"):
        restore_loki_model(tmp_path / "upcast", tmp_path / "restored")
    # And where they changed by less than the base's type can hold.
    weights = load_file(tmp_path / "upcast" / "model.safetensors")
    for layer, rows in enumerate(POSITIONS):
        weights[f"model.layers.{layer}.mlp.down_proj.weight"][rows] *= 1 + 1e-5
    save_file(weights, tmp_path / "upcast" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LokiError, match="0 of 6"):
        restore_loki_model(tmp_path / "upcast", tmp_path / "restored")


def test_refusals(llama_dir: Path, qwen2_dir: Path, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, llama_dir)
    write_positions(tmp_path / "other.json", [[0], [1], [2]])
    (tmp_path / "empty").mkdir()
    output = tmp_path / "restored"
    with pytest.raises(LokiError, match="missing or empty"):
        restore_loki_model(tmp_path / "absent", output)
    with pytest.raises(LokiError, match="missing or empty"):
        restore_loki_model(tmp_path / "empty", output)
    with pytest.raises(LokiError, match="not a LoKI model"):
        restore_loki_model(llama_dir, output)
    with pytest.raises(LokiError, match="weights are others"):
        restore_loki_model(checkpoint, output, base_model=qwen2_dir)
    with pytest.raises(LokiError, match="not the one"):
        restore_loki_model(checkpoint, output, target_pos_path=tmp_path / "other.json")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(LokiError, match="truncated"):
        restore_loki_model(checkpoint, output)
    assert not output.exists()


def test_a_configuration_that_the_family_refuses(llama_dir: Path, tmp_path: Path) -> None:
    with contextlib.suppress(StrictDataclassError):
        AutoConfig.for_model("llama", head_dim=7)
        pytest.skip("this release of Transformers takes every configuration")
    checkpoint = trained(tmp_path, llama_dir)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "head_dim": 7}))
    with pytest.raises(LokiError, match=r"model configuration .*trained"):
        restore_loki_model(checkpoint, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    ("positions", "problem"),
    [
        (None, "list of lists"),
        ([[1], [2]], "2 layers"),
        ([[1, 32], [7], [0]], "row 32"),
        ([[1, "2"], [7], [0]], "is '2'"),
    ],
)
def test_wrong_positions_in_the_configuration(llama_dir: Path, tmp_path: Path, positions: object, problem: str) -> None:
    checkpoint = trained(tmp_path, llama_dir)
    set_target_pos(checkpoint, positions)
    with pytest.raises(LokiError, match=f"target_pos.*{problem}"):
        restore_loki_model(checkpoint, tmp_path / "restored")


def test_unsorted_positions_in_the_configuration(llama_dir: Path, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, llama_dir)
    set_target_pos(checkpoint, [rows[::-1] for rows in POSITIONS])
    set_target_pos(tmp_path / "loki", [rows[::-1] for rows in POSITIONS])
    with pytest.raises(LokiError, match="0 of 6"):
        restore_loki_model(tmp_path / "loki", tmp_path / "restored")
    restore_loki_model(checkpoint, tmp_path / "restored", target_pos_path=tmp_path / "positions.json")
    assert verify(llama_dir, tmp_path / "restored", POSITIONS).changed_rows == 6


def set_target_pos(checkpoint: Path, positions: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_pos": positions}))


def test_sharded_checkpoint(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model().save_pretrained(base, max_shard_size="20KB")
    checkpoint = trained(tmp_path, base)
    AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert (tmp_path / "sharded" / INDEX_NAME).is_file()
    restored = restore_loki_model(tmp_path / "sharded", tmp_path / "restored", base_model=base)
    assert (restored / INDEX_NAME).is_file()
    report = verify(base, restored, POSITIONS)
    assert (report.differences, report.changed_rows) == ([], 6)
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(restored)(TOKENS).logits,
        AutoModelForCausalLM.from_pretrained(checkpoint)(TOKENS).logits,
    )


def test_directory_of_checkpoints_names_the_last(llama_dir: Path, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, llama_dir)
    for step in (9, 10, "best"):
        shutil.copytree(checkpoint, tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(LokiError, match=r"did you mean .*checkpoint-10\?"):
        restore_loki_model(tmp_path / "run", tmp_path / "restored")


def test_an_input_is_not_overwritten(llama_dir: Path, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, llama_dir)
    base = Path(shutil.copytree(llama_dir, tmp_path / "base"))
    for output in (checkpoint, base, tmp_path):
        with pytest.raises(LokiError, match=r"--overwrite .*remove"):
            restore_loki_model(checkpoint, output, base_model=base, overwrite=True)
    assert (checkpoint / "config.json").is_file() and (base / "config.json").is_file()
