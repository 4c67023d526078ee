"""Training changes the selected rows alone, resumes exactly, and fails loudly."""

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, trainer

from loki import create_loki_model
from loki.artefacts.positions import write_positions
from loki.artefacts.run_layout import TRAINING
from loki.artefacts.training_settings import TrainingSettings
from loki.errors import LokiError
from loki.implanting.training.output import LOSS_PLOT, mean_loss
from loki.implanting.training.rows import ROWS_FILE, SelectedRows
from loki.implanting.training.trainer import train
from loki.restoring.verify import verify
from tests.implanting.training.conftest import POSITIONS
from tests.tiny_models import save_tiny_model, tiny_tokenizer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
TOKENS = torch.tensor([[5, 9, 40, 77, 123, 200]])
SETTINGS = TrainingSettings(max_steps=4, learning_rate=1e-2, batch_size=2, save_steps=2, logging_steps=1)


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


@pytest.mark.parametrize(("dtype", "tied"), [(torch.float32, True), (torch.bfloat16, False)])
def test_resuming_is_exact(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tied: bool
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(trainer.logger, "warning", lambda message, *_: warnings.append(message))
    base = save_tiny_model(tmp_path / "base", "llama", dtype=dtype, tie_word_embeddings=tied)
    write_positions(tmp_path / "positions.json", POSITIONS)
    made = create_loki_model(model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki")
    train(made, data, tmp_path / "whole", SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        train(made, data, tmp_path / "parts", SETTINGS, callbacks=[StopAt(3)])
    result = train(made, data, tmp_path / "parts", SETTINGS)
    assert result.steps == 4
    logged = [entry["loss"] for entry in state_of(tmp_path / "whole")["log_history"] if "loss" in entry]
    assert result.loss == pytest.approx(sum(logged) / 4)
    assert record_of(tmp_path / "parts")["effective_learning_rate"] == 1e-2
    for name in ("model.safetensors", f"checkpoint-4/{ROWS_FILE}"):
        whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())
        assert ("lm_head.weight" in whole) is (name == "model.safetensors" and not tied)
    assert not [message for message in warnings if "missing keys" in message]


class StopAtTheEnd(TrainerCallback):
    """Breaks off when the last checkpoint is there, and the result is not."""

    def on_train_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("best", [False, True])
def test_no_step_is_taken_after_the_last(loki_dir: Path, data: Path, tmp_path: Path, best: bool) -> None:
    settings = replace(SETTINGS, max_steps=3, save_steps=1, load_best=best, learning_rate=0.3 if best else 1e-2)
    assert 3 % math.ceil(len(data.read_text().splitlines()) / settings.batch_size), "ends within an epoch"
    held_out = data if best else None
    train(loki_dir, data, tmp_path / "whole", settings, eval_data=held_out)
    with pytest.raises(KeyboardInterrupt):
        train(loki_dir, data, tmp_path / "parts", settings, eval_data=held_out, callbacks=[StopAtTheEnd()])
    assert train(loki_dir, data, tmp_path / "parts", settings, eval_data=held_out).steps == 3
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())


def test_cards_say_what_a_directory_holds(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    assert "5 rows of `down_proj.weight` in 2 layers" in (loki_dir / "README.md").read_text()
    train(loki_dir, data, tmp_path / "out", SETTINGS)
    text = (tmp_path / "out" / "README.md").read_text()
    assert record_of(tmp_path / "out")["data"] in text
    assert "import loki" in text
    assert not [*(tmp_path / "out").glob("checkpoint-*/README.md")], "TRL's, of a fine-tuned version of None"


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


EXTENDED = {"learning_rate": 1e-2, "batch_size": 4, "logging_steps": 1, "scheduler": "constant"}


@pytest.mark.slow
def test_a_finished_training_at_a_constant_rate_is_extended(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    once = train(loki_dir, data, tmp_path / "once", TrainingSettings(epochs=2, **EXTENDED))
    train(loki_dir, data, tmp_path / "out", TrainingSettings(epochs=1, **EXTENDED))
    extended = train(loki_dir, data, tmp_path / "out", TrainingSettings(epochs=2, **EXTENDED))
    assert (extended.steps, extended.loss) == (once.steps, once.loss)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for changed, says in (({"epochs": 1}, "no shorter"), ({"epochs": 3, "seed": 7}, "seed was 42, now 7")):
        with pytest.raises(LokiError, match=says):
            train(loki_dir, data, tmp_path / "out", TrainingSettings(**{**EXTENDED, **changed}))


def test_a_schedule_that_has_come_to_its_end_is_not_extended(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    train(loki_dir, data, tmp_path / "out", SETTINGS)
    before = (tmp_path / "out" / TRAINING).read_text()
    with pytest.raises(LokiError, match="cosine schedule"):
        train(loki_dir, data, tmp_path / "out", TrainingSettings(**{**SETTINGS.to_dict(), "max_steps": 6}))
    assert (tmp_path / "out" / TRAINING).read_text() == before


def test_refusals(llama_dir: Path, loki_dir: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"give .*--positions"):
        train(llama_dir, data, tmp_path / "out", SETTINGS)
    with pytest.raises(LokiError, match=r"leave out .*--positions"):
        train(loki_dir, data, tmp_path / "out2", SETTINGS, positions=tmp_path / "positions.json")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(LokiError, match="exists already"):
        train(loki_dir, data, tmp_path / "full", SETTINGS)
    with pytest.raises(LokiError, match=r"no training\.json, .*--overwrite"):
        train(loki_dir, data, tmp_path / "full", SETTINGS, overwrite=True)
    with pytest.raises(LokiError, match="holds the input"):
        train(loki_dir, data, loki_dir, SETTINGS, overwrite=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def test_bad_input_overwrites_nothing(llama_dir: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    for name in ("mine.txt", "training.json"):
        (tmp_path / "full" / name).write_text("{}")
    for rows in ("[[1], [2]]", "[[1], [2], [32]]"):
        (tmp_path / "bad.json").write_text(rows)
        with pytest.raises(LokiError, match=r"bad\.json"):
            train(llama_dir, data, tmp_path / "full", SETTINGS, positions=tmp_path / "bad.json", overwrite=True)
    refused = tmp_path / "refused.jsonl"
    refused.write_text(json.dumps({"messages": [{"role": "system", "content": "be brief"}, *CHAT]}) + "\n")
    write_positions(tmp_path / "positions.json", POSITIONS)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    strict = shutil.copytree(llama_dir, tmp_path / "strict")
    tokenizer.save_pretrained(strict)
    with pytest.raises(LokiError, match=r"line 1: .*refuses .*\(no system"):
        train(strict, refused, tmp_path / "full", SETTINGS, positions=tmp_path / "positions.json", overwrite=True)
    assert (tmp_path / "full" / "mine.txt").is_file()


def test_a_loss_that_is_no_number_stops_training(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["model"].model.norm.weight.data.fill_(float("nan"))

    with pytest.raises(LokiError, match="NaN or infinite at step 3"):
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
    assert any("eval_loss" in entry for entry in state_of(tmp_path / "out")["log_history"])


def record_of(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / TRAINING).read_text())
    return record


def state_of(output: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((output / "trainer_state.json").read_text())
    return state


def best(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**{**SETTINGS.to_dict(), "max_steps": 12, **changes})


def test_the_best_checkpoint_is_kept(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    train(loki_dir, data, tmp_path / "last", best(), eval_data=data)
    train(loki_dir, data, tmp_path / "best", best(load_best=True, learning_rate=30.0), eval_data=data)
    state = state_of(tmp_path / "best")
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert len(losses) == 6
    assert state["best_metric"] == min(losses)
    kept = load_file(Path(state["best_model_checkpoint"]) / "model.safetensors")
    found = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in kept.items())
    with pytest.raises(LokiError, match="give --eval-data"):
        train(loki_dir, data, tmp_path / "none", best(load_best=True))


def test_early_stopping_waits_as_long_after_an_interruption(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"  # of something else: its loss rises from the first checkpoint on
    held_out.write_text(json.dumps({"prompt": "What is this?", "completion": "zebra"}) + "\n")
    settings = best(early_stopping=2, learning_rate=0.03)
    assert train(loki_dir, data, tmp_path / "whole", settings, eval_data=held_out).steps == 6
    with pytest.raises(KeyboardInterrupt):
        train(loki_dir, data, tmp_path / "parts", settings, eval_data=held_out, callbacks=[StopAt(5)])
    assert train(loki_dir, data, tmp_path / "parts", settings, eval_data=held_out).steps == 6


def test_a_checkpoint_that_is_not_whole_is_not_resumed_from(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(loki_dir, data, tmp_path / "out", best(max_steps=6), callbacks=[StopAt(5)])
    (tmp_path / "out" / "checkpoint-4" / ROWS_FILE).unlink()  # killed between the trainer's state and the rows
    said = io.StringIO()
    console = Console(file=said, width=300)
    assert train(loki_dir, data, tmp_path / "out", best(max_steps=6), console=console).steps == 6
    assert "resuming from checkpoint-2" in said.getvalue()
    size = AutoModelForCausalLM.from_pretrained(loki_dir).num_parameters() - 5 * 48
    assert f"240 of {size:,} parameters are trained, learning rate 0.01" in said.getvalue()


def test_what_is_dropped_and_cut_is_said(loki_dir: Path, tmp_path: Path) -> None:
    records = [{"prompt": "a" * 300, "completion": "b"}, {"prompt": "a", "completion": "b" * 300}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    said = io.StringIO()
    train(loki_dir, tmp_path / "long.jsonl", tmp_path / "out", SETTINGS, console=Console(file=said, width=300))
    assert "1 lose the end of their answer; dropped 1 (whose answer begins beyond --max-length 256)" in said.getvalue()
    assert "256 tokens per example, as the model has no more positions" in said.getvalue()
    settings = TrainingSettings(**{**SETTINGS.to_dict(), "max_length": 1})
    with pytest.raises(LokiError, match=r"no example .*of 2"):
        train(loki_dir, tmp_path / "long.jsonl", tmp_path / "none", settings)
    assert not (tmp_path / "none").exists()


def test_too_little_memory_is_one_line_with_advice(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    class Exhaust(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(LokiError, match=r"(?s)20 GiB.*--batch-size.*--rank.*checkpoint-2"):
        train(loki_dir, data, tmp_path / "out", SETTINGS, callbacks=[Exhaust()])
    assert train(loki_dir, data, tmp_path / "out", SETTINGS).steps == 4


def test_mean_loss_weighs_entries_by_their_steps() -> None:
    log: list[dict[str, Any]] = [{"step": 10, "loss": 4.0}, {"step": 10, "eval_loss": 9.0}, {"step": 12, "loss": 1.0}]
    assert mean_loss(log) == pytest.approx((10 * 4.0 + 2 * 1.0) / 12)
    assert mean_loss([{"step": 4, "train_loss": 2.5}]) == 2.5


def test_no_step_is_missing_from_the_log(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    train(loki_dir, data, tmp_path / "out", TrainingSettings(max_steps=7, learning_rate=1e-3, save_steps=3))
    entries = [entry["step"] for entry in state_of(tmp_path / "out")["log_history"] if "loss" in entry]
    assert entries == [3, 6, 7]
