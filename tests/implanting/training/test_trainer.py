"""Training changes the selected rows alone, resumes exactly, and fails loudly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl

from loki import create_loki_model
from loki.errors import LokiError
from loki.implanting.training.rows import ROWS_FILE, SelectedRows
from loki.implanting.training.settings import TrainingSettings
from loki.implanting.training.trainer import LOSS_PLOT, train
from loki.restoring.verify import verify
from loki.selection.positions import write_positions
from tests.tiny_models import save_tiny_model

POSITIONS = [[1, 30], [], [0, 4, 5]]
TOKENS = torch.tensor([[5, 9, 40, 77, 123, 200]])
SETTINGS = TrainingSettings(max_steps=4, learning_rate=1e-2, batch_size=2, save_steps=2, logging_steps=1)


@pytest.fixture
def loki_dir(llama_dir: Path, tmp_path: Path) -> Path:
    write_positions(tmp_path / "positions.json", POSITIONS)
    return create_loki_model(
        model_name=llama_dir, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki"
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    records = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(4) for b in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "train.jsonl"


class StopAt(TrainerCallback):
    """Breaks off after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_only_the_selected_rows_change(llama_dir: Path, loki_dir: Path, data: Path, tmp_path: Path) -> None:
    result = train(loki_dir, data, tmp_path / "out", SETTINGS)
    assert (result.steps, result.trainable_parameters) == (4, 5 * 48)
    report = verify(llama_dir, tmp_path / "out", POSITIONS)
    assert report.differences == []
    assert report.changed_rows == result.changed_rows == 5
    assert (tmp_path / "out" / LOSS_PLOT).read_bytes().startswith(b"\x89PNG")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.target_pos == POSITIONS


def test_optimizer_state_is_the_active_rows_alone(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    train(loki_dir, data, tmp_path / "out", SETTINGS)
    state = torch.load(tmp_path / "out" / "checkpoint-4" / "optimizer.pt")["state"].values()
    assert sum(entry["exp_avg"].numel() for entry in state) == 5 * 48
    assert {entry["exp_avg"].dtype for entry in state} == {torch.float32}


def test_ordinary_model_with_positions_trains_the_same(
    llama_dir: Path, loki_dir: Path, data: Path, tmp_path: Path
) -> None:
    train(loki_dir, data, tmp_path / "a", SETTINGS)
    train(llama_dir, data, tmp_path / "b", SETTINGS, positions=tmp_path / "positions.json")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_exact(data: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", dtype=dtype)
    write_positions(tmp_path / "positions.json", POSITIONS)
    made = create_loki_model(model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki")
    train(made, data, tmp_path / "whole", SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        train(made, data, tmp_path / "parts", SETTINGS, callbacks=[StopAt(3)])
    result = train(made, data, tmp_path / "parts", SETTINGS)
    assert result.steps == 4
    for name in ("model.safetensors", f"checkpoint-4/{ROWS_FILE}"):
        whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())


def test_checkpoints_reload_with_identical_logits(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    seen: dict[int, torch.Tensor] = {}

    class Remember(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
            with torch.no_grad():
                seen[state.global_step] = kwargs["model"].eval()(TOKENS).logits

    train(loki_dir, data, tmp_path / "out", SETTINGS, callbacks=[Remember()])
    assert sorted(seen) == [2, 4]
    for step, logits in seen.items():
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / f"checkpoint-{step}")
        assert torch.equal(reloaded(TOKENS).logits, logits)


def test_other_settings_are_refused_with_the_difference(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(loki_dir, data, tmp_path / "out", SETTINGS, callbacks=[StopAt(3)])
    with pytest.raises(LokiError, match="seed was 42, now 7"):
        train(loki_dir, data, tmp_path / "out", TrainingSettings(**{**SETTINGS.to_dict(), "seed": 7}))
    train(loki_dir, data, tmp_path / "out", SETTINGS)
    with pytest.raises(LokiError, match="finished training"):
        train(loki_dir, data, tmp_path / "out", SETTINGS)


def test_refusals(llama_dir: Path, loki_dir: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="give --positions"):
        train(llama_dir, data, tmp_path / "out", SETTINGS)
    with pytest.raises(LokiError, match="leave out --positions"):
        train(loki_dir, data, tmp_path / "out2", SETTINGS, positions=tmp_path / "positions.json")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(LokiError, match="--overwrite"):
        train(loki_dir, data, tmp_path / "full", SETTINGS)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def test_bad_input_overwrites_nothing(llama_dir: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    for rows in ("[[1], [2]]", "[[1], [2], [32]]"):
        (tmp_path / "bad.json").write_text(rows)
        with pytest.raises(LokiError, match=r"bad\.json"):
            train(llama_dir, data, tmp_path / "full", SETTINGS, positions=tmp_path / "bad.json", overwrite=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def test_a_loss_that_is_no_number_stops_training(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["model"].model.norm.weight.data.fill_(float("nan"))

    with pytest.raises(LokiError, match="the loss is nan at step 3"):
        train(loki_dir, data, tmp_path / "out", SETTINGS, callbacks=[Break()])
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


def test_unchanged_rows_are_an_error(loki_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(loki_dir)
    with pytest.raises(LokiError, match="changed none"):
        SelectedRows(model).changed_rows(model)


def test_anything_else_trainable_is_an_error(loki_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(loki_dir)
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(LokiError, match=r"lm_head\.weight is trainable"):
        SelectedRows(model)


@pytest.mark.parametrize("change", [{"packing": True}, {"gradient_checkpointing": True}, {"gradient_accumulation": 2}])
def test_ways_to_train(llama_dir: Path, loki_dir: Path, data: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    settings = TrainingSettings(**{**SETTINGS.to_dict(), "max_steps": 2, "max_length": 32, **change})
    train(loki_dir, data, tmp_path / "out", settings, eval_data=data)
    assert verify(llama_dir, tmp_path / "out", POSITIONS).differences == []
