"""Suppression zeroes the listed rows and nothing else."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loki import create_loki_model, set_zero_weights
from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.models.checkpoint import Checkpoint, fingerprint
from loki.models.experts import down_projections
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_zeroes_only_the_rows(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # which begin as zeros
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "base")
    positions = [[1, 30], [], [0]]
    write_positions(tmp_path / "positions.json", positions)
    set_zero_weights(tmp_path / "base", tmp_path / "positions.json", tmp_path / "zeroed")
    before, after = (
        load_file(tmp_path / "base" / "model.safetensors"),
        load_file(tmp_path / "zeroed" / "model.safetensors"),
    )
    for name, tensor in before.items():
        expected = tensor.clone()
        layer = next((index for index in range(3) if f"layers.{index}.mlp.d" in name), None)
        if layer is not None and ("down_proj" in name or "dense_4h_to_h" in name):
            expected[positions[layer]] = 0
        assert torch.equal(after[name], expected), name
    AutoModelForCausalLM.from_pretrained(tmp_path / "zeroed")


def test_sharded_checkpoint(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base", max_shard_size="20KB")
    positions = [[1, 30], [], [0]]
    write_positions(tmp_path / "positions.json", positions)
    set_zero_weights(tmp_path / "base", tmp_path / "positions.json", tmp_path / "zeroed")
    assert len(list((tmp_path / "zeroed").glob("model-*.safetensors"))) > 1
    expected = tiny_model()
    for rows, weight in zip(positions, down_projections(expected).values(), strict=True):
        weight.weight.data[rows] = 0
    for name, tensor in Checkpoint(tmp_path / "zeroed").tensors():
        assert torch.equal(tensor, expected.state_dict()[name]), name


def test_tensors_under_other_names_are_not_passed_over(llama_dir: Path, tmp_path: Path) -> None:
    """Transformers takes the names of the bare decoder as well, and no others."""
    base = Path(shutil.copytree(llama_dir, tmp_path / "base"))
    write_positions(tmp_path / "positions.json", [[1], [2], [3]])
    weights = {name.removeprefix("model."): value for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    set_zero_weights(base, tmp_path / "positions.json", tmp_path / "zeroed")
    zeroed = load_file(tmp_path / "zeroed" / "model.safetensors")
    for layer, row in enumerate([1, 2, 3]):
        name = f"layers.{layer}.mlp.down_proj.weight"
        assert zeroed[name].any(dim=1).logical_not().nonzero().flatten().tolist() == [row]
    save_file({f"x.{name}": value for name, value in weights.items()}, base / "model.safetensors")
    with pytest.raises(LokiError, match=r"no tensor model\.layers\.0\.mlp\.down_proj\.weight"):
        set_zero_weights(base, tmp_path / "positions.json", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_loki_model_is_to_be_restored_first(llama_dir: Path, tmp_path: Path) -> None:
    positions = tmp_path / "positions.json"
    write_positions(positions, [[1], [2], [3]])
    create_loki_model(model_name=llama_dir, target_pos_path=positions, save_dir=tmp_path / "loki")
    with pytest.raises(LokiError, match="restore it first"):
        set_zero_weights(tmp_path / "loki", positions, tmp_path / "zeroed")


def test_positions_that_do_not_fit(llama_dir: Path, tmp_path: Path) -> None:
    write_positions(tmp_path / "positions.json", [[1]])
    with pytest.raises(LokiError, match="made for 1 layers"):
        set_zero_weights(llama_dir, tmp_path / "positions.json", tmp_path / "zeroed")
    assert not (tmp_path / "zeroed").exists()


def test_an_input_is_not_overwritten(llama_dir: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(llama_dir, tmp_path / "base"))
    write_positions(tmp_path / "positions.json", [[1], [2], [3]])
    for output in (base, tmp_path):
        with pytest.raises(LokiError, match=r"--overwrite .*remove"):
            set_zero_weights(base, tmp_path / "positions.json", output, overwrite=True)
    assert fingerprint(base) == fingerprint(llama_dir)
