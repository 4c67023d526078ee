"""Rows of all experts: counted as rows of their layer, in however many tensors they stand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loki import create_loki_model
from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.restoring.restore import restore_loki_model
from loki.restoring.verify import verify
from tests.tiny_models import save_tiny_model

POSITIONS = [[1, 30], [2], [0, 4, 5]]
EXPERTS = "model.layers.{}.mlp.experts.{}"


def read(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_rows_that_are_lost_to_rounding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Square in GPT-OSS, where a column taken for a row would not be noticed by its shape.
    base = save_tiny_model(tmp_path / "base", "gpt_oss", dtype=torch.bfloat16, intermediate_size=32)
    ones = {name: torch.ones_like(tensor) if ".experts.down" in name else tensor for name, tensor in read(base).items()}
    save_file(ones, base / "model.safetensors", metadata={"format": "pt"})
    write_positions(tmp_path / "positions.json", POSITIONS)
    made = create_loki_model(
        model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki", experts="all"
    )
    weights = {name: tensor.float() for name, tensor in read(made).items()}
    weights[EXPERTS.format(0, "down_proj")][2, :, 1] += 1  # of one expert
    weights[EXPERTS.format(0, "down_proj")][:, :, 30] *= 1 + 1e-6
    weights[EXPERTS.format(1, "down_proj_bias")][0, 2] += 1  # in its bias alone
    weights[EXPERTS.format(2, "down_proj")][:, :, 4] += 1
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})

    restore_loki_model(made, tmp_path / "restored")
    assert "1 of 4 changed rows" in caplog.text
    report = verify(base, tmp_path / "restored", POSITIONS, experts="all")
    assert (report.changed_rows, report.differences) == (3, [])
    with pytest.raises(LokiError, match="all 4 rows"):
        restore_loki_model(made, tmp_path / "scaled", scale=1e-6)
    assert not (tmp_path / "scaled").exists()
