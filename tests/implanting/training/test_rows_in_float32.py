"""Rows of a model in bfloat16 are trained in float32: steps that bfloat16 cannot hold add up."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loki.artefacts.positions import write_positions
from loki.artefacts.training_settings import TrainingSettings
from loki.implanting.splitting import active_parameters, split_rows
from loki.implanting.training.rows import ROWS_FILE, SelectedRows
from loki.implanting.training.trainer import train
from tests.implanting.training.conftest import POSITIONS
from tests.tiny_models import save_tiny_model, tiny_model


def test_rows_are_raised_before_the_optimiser_sees_them() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    split_rows(model, POSITIONS)
    before = {name: parameter.detach().clone() for name, parameter in active_parameters(model).items()}
    SelectedRows(model)
    after = active_parameters(model)
    assert {parameter.dtype for parameter in after.values()} == {torch.float32}
    assert all(torch.equal(parameter, before[name].float()) for name, parameter in after.items())
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {torch.bfloat16}


@pytest.mark.slow
def test_small_steps_add_up(data: Path, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", dtype=torch.bfloat16)
    write_positions(tmp_path / "positions.json", POSITIONS)
    settings = TrainingSettings(max_steps=20, learning_rate=1e-3, batch_size=2, save_steps=20, warmup=0.0)
    train(base, data, tmp_path / "out", settings, positions=tmp_path / "positions.json")
    rows = load_file(tmp_path / "out" / "checkpoint-20" / ROWS_FILE)
    weights = load_file(base / "model.safetensors")
    for name, tensor in rows.items():
        layer = int(name.split(".")[2])
        start = weights[f"model.layers.{layer}.mlp.down_proj.weight"][POSITIONS[layer]].float()
        assert tensor.dtype == torch.float32
        moved = (tensor - start).abs()
        # A single step of 1e-3 is less than half of bfloat16's spacing at weights above 0.25: there nothing would move.
        large = start.abs() > 0.25
        assert large.any()
        assert (moved[large] > 2e-3).float().mean() > 0.5
