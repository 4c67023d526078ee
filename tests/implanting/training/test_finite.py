"""A gradient or a row that is NaN or infinite stops training before anything is saved."""

from pathlib import Path

import pytest
import torch

from loki.artefacts.positions import write_positions
from loki.artefacts.training_settings import TrainingSettings
from loki.errors import LokiError
from loki.implanting.create import create_loki_model
from loki.implanting.splitting import active_parameters
from loki.implanting.training.rows import SelectedRows, check_finite, check_gradients
from loki.implanting.training.trainer import train
from loki.models.loading import load_model
from tests.tiny_models import save_tiny_model


def loki_model(folder: Path, dtype: torch.dtype | None = None) -> Path:
    tiny_base = save_tiny_model(folder / "base")
    write_positions(folder / "positions.json", [[1], [2], [3]])
    return create_loki_model(
        model_name=tiny_base, target_pos_path=folder / "positions.json", save_dir=folder / "loki", torch_dtype=dtype
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_gradients_and_rows(tmp_path: Path, number: float) -> None:
    model = load_model(loki_model(tmp_path))
    rows = SelectedRows(model)
    check_finite(model)
    check_gradients(model, 1)  # none yet
    parameter = next(iter(active_parameters(model).values()))
    parameter.grad = torch.zeros_like(parameter)
    check_gradients(model, 1)
    parameter.grad[0, 0] = number
    with pytest.raises(LokiError, match="NaN or infinite at step 7"):
        check_gradients(model, 7)
    parameter.data[0, 0] = number
    with pytest.raises(LokiError, match="NaN or infinite"):
        check_finite(model)
    with pytest.raises(LokiError, match="NaN or infinite"):
        rows.changed_rows(model)


def test_a_training_in_float16_that_overflows(tmp_path: Path) -> None:
    """It has fewer steps than pass before the loss is logged for the first time."""
    made = loki_model(tmp_path, torch.float16)
    model = load_model(made)
    model.lm_head.weight.data *= 6e4  # logits beyond what float16 holds
    model.save_pretrained(made)
    (tmp_path / "data.jsonl").write_text('{"prompt": "Who?", "completion": " Ada."}\n' * 4)
    settings = TrainingSettings(max_steps=3, batch_size=2, learning_rate=1e-4)
    with pytest.raises(LokiError, match="NaN or infinite"):
        train(made, tmp_path / "data.jsonl", tmp_path / "trained", settings)
    assert not list((tmp_path / "trained").rglob("*.safetensors"))


def test_changes_that_the_weights_type_cannot_hold(tmp_path: Path) -> None:
    model = load_model(loki_model(tmp_path, torch.bfloat16))
    rows = SelectedRows(model)
    parameters = list(active_parameters(model).values())
    with torch.no_grad():
        parameters[0] *= 1 + 1e-6
    with pytest.raises(LokiError, match="1 rows changed by less"):
        rows.changed_rows(model)
    with torch.no_grad():
        parameters[1] += 1
    assert (rows.changed_rows(model), rows.vanished) == (1, 1)
