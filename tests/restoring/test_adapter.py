"""A trained adapter becomes an ordinary model that differs from its base in the selected rows alone."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load, load_file, save_file
from transformers import AutoModelForCausalLM

from loki import LoKIConfig, restore_loki_model
from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.implanting.peft.zero import save_zero_adapter
from loki.restoring.verify import verify
from tests.tiny_models import save_tiny_model

POSITIONS = [[1, 30], [], [0, 4, 5]]
TOKENS = torch.arange(12).reshape(2, 6)


def save_adapter(base: Path, output: Path, rank: int | None = None) -> torch.Tensor:
    """Save an adapter with random values; returns the logits of the base with it merged by PEFT."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"), LoKIConfig(positions=POSITIONS, rank=rank)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(output)
    with torch.no_grad():
        return model.merge_and_unload()(TOKENS).logits


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_as_merging_with_peft(tmp_path: Path, rank: int | None, dtype: torch.dtype) -> None:
    base = save_tiny_model(tmp_path / "base", dtype=dtype)
    expected = save_adapter(base, tmp_path / "adapter", rank)
    restore_loki_model(tmp_path / "adapter", tmp_path / "restored")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "restored", dtype="auto")
    assert torch.equal(model(TOKENS).logits, expected)
    report = verify(base, tmp_path / "restored", POSITIONS)
    assert (report.differences, report.changed_rows) == ([], 5)
    assert (tmp_path / "restored" / "tokenizer.json").is_file()


def test_an_adapter_that_changes_nothing(llama_dir: Path, tmp_path: Path) -> None:
    save_zero_adapter(llama_dir, POSITIONS, tmp_path / "zero")
    with pytest.raises(LokiError, match="changes nothing"):
        restore_loki_model(tmp_path / "zero", tmp_path / "restored")
    restore_loki_model(tmp_path / "zero", tmp_path / "restored", allow_unchanged=True)
    assert verify(llama_dir, tmp_path / "restored", POSITIONS).changed_rows == 0


def test_refusals(llama_dir: Path, qwen2_dir: Path, tmp_path: Path) -> None:
    save_adapter(llama_dir, tmp_path / "adapter")
    write_positions(tmp_path / "other.json", [[0], [], []])
    with pytest.raises(LokiError, match="not the ones"):
        restore_loki_model(tmp_path / "adapter", tmp_path / "restored", target_pos_path=tmp_path / "other.json")
    another = save_tiny_model(tmp_path / "another", seed=1)
    with pytest.raises(LokiError, match="selected rows"):
        restore_loki_model(tmp_path / "adapter", tmp_path / "restored", base_model=another)
    narrow = save_tiny_model(tmp_path / "narrow", intermediate_size=40)
    with pytest.raises(LokiError, match="does not fit"):
        restore_loki_model(tmp_path / "adapter", tmp_path / "restored", base_model=narrow)
    shallow = save_tiny_model(tmp_path / "shallow", num_hidden_layers=2)
    with pytest.raises(LokiError, match=r"3 layers.* 2"):
        restore_loki_model(tmp_path / "adapter", tmp_path / "restored", base_model=shallow)
    assert not (tmp_path / "restored").exists()


def test_the_named_base_is_not_overwritten(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    save_adapter(base, tmp_path / "adapter")
    for output in (base, tmp_path / "adapter"):
        with pytest.raises(LokiError, match=r"--overwrite .*remove"):
            restore_loki_model(tmp_path / "adapter", output, overwrite=True)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("model.layers.1.self_attn.q_proj.weight", "self_attn"),
        ("model.layers.2.mlp.gate_proj.weight", "mlp"),
        ("model.layers.0.mlp.down_proj.weight", "selected rows"),
        ("model.layers.0.input_layernorm.weight", "input_layernorm"),
    ],
)
@pytest.mark.parametrize("made", ["saved by PEFT", "of a directory"])
def test_another_base_is_refused_by_what_differs(tmp_path: Path, part: str, says: str, made: str) -> None:
    base = save_tiny_model(tmp_path / "base")
    if made == "saved by PEFT":
        save_adapter(base, tmp_path / "adapter")
    else:
        save_zero_adapter(base, POSITIONS, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "other")
    tensors = load_file(base / "model.safetensors")
    tensors[part] += 0.1
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LokiError, match=says):
        restore_loki_model(tmp_path / "adapter", tmp_path / "out", base_model=tmp_path / "other", allow_unchanged=True)
    restore_loki_model(tmp_path / "adapter", tmp_path / "out", base_model=base, allow_unchanged=True)


def test_rows_that_were_trained_before_are_no_other_base(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    save_adapter(base, tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] += 1  # where the adapter has no rows
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    restore_loki_model(tmp_path / "adapter", tmp_path / "out")


def test_another_precision_is_another_base(tmp_path: Path) -> None:
    wide = save_tiny_model(tmp_path / "wide")
    save_adapter(wide, tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    with pytest.raises(LokiError, match="float32 then, bfloat16 here"):
        restore_loki_model(tmp_path / "adapter", tmp_path / "out", base_model=tmp_path / "narrow")


@pytest.mark.parametrize(
    ("stored", "loaded"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "float16")]
)
def test_a_base_may_be_loaded_in_another_precision(tmp_path: Path, stored: str, loaded: str) -> None:
    base = save_tiny_model(tmp_path / "base", dtype=getattr(torch, stored))
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, loaded)), LoKIConfig(positions=POSITIONS)
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "adapter")
    restore_loki_model(tmp_path / "adapter", tmp_path / "out", base_model=base)
    assert verify(base, tmp_path / "out", POSITIONS).changed_rows == 5


def test_factors_without_columns_are_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    save_adapter(base, tmp_path / "adapter", rank=2)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load(file.read_bytes())
    save_file({name: (own[:, :0] if "loki_A" in name else own).clone() for name, own in tensors.items()}, file)
    with pytest.raises(LokiError, match=r"\[32, 48\]"):
        restore_loki_model(tmp_path / "adapter", tmp_path / "out", base_model=base)


def test_another_width_is_refused(tmp_path: Path) -> None:
    save_adapter(save_tiny_model(tmp_path / "base"), tmp_path / "adapter", rank=2)
    wider = save_tiny_model(tmp_path / "wider", intermediate_size=64)
    with pytest.raises(LokiError, match=r"\[32, 64\]"):
        restore_loki_model(tmp_path / "adapter", tmp_path / "out", base_model=wider)
