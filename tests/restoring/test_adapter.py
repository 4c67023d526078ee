"""A trained adapter becomes an ordinary model that differs from its base in the selected rows alone."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
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
    with pytest.raises(LokiError, match="made for other weights"):
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
