"""What cannot be shared is refused; tests/implanting/distributed shares the rest among real processes."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from loki import LoKIConfig, create_loki_model
from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.implanting import sharding
from loki.implanting.sharding import full_tensor, is_sharded, rows_are_kept_apart, shard_like
from tests.tiny_models import tiny_model

POSITIONS = [[1], [], [2]]


def test_zero_3_is_refused(llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_positions(tmp_path / "positions.json", POSITIONS)
    made = create_loki_model(model_name=llama_dir, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "m")
    monkeypatch.setattr(sharding, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(LokiError, match=r"ZeRO-3 .*ZeRO-2"):
        AutoModelForCausalLM.from_pretrained(made)
    with pytest.raises(LokiError, match=r"ZeRO-3 .*ZeRO-2"):
        get_peft_model(tiny_model(), LoKIConfig(positions=POSITIONS))


def test_a_whole_tensor_stays_what_it_is() -> None:
    tensor = torch.ones(2, 3, requires_grad=True)
    assert not is_sharded(tensor)
    assert not rows_are_kept_apart(tensor)
    assert torch.equal(full_tensor(tensor), tensor)
    assert not full_tensor(tensor).requires_grad
    assert shard_like(tensor, torch.zeros(2, 3)) is tensor
