"""The output directory of a training: what it may hold, which checkpoint to continue from, what is left."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import get_last_checkpoint

from loki.artefacts.differences import changes
from loki.artefacts.positions import read_positions
from loki.artefacts.run_layout import TRAINING
from loki.artefacts.run_records import read_record, remove_recorded, write_record
from loki.artefacts.trainer_state import STATE, read_trainer_state
from loki.artefacts.training_settings import Scheduler, TrainingSettings
from loki.errors import LokiError, one_line
from loki.files import atomic_file, protect_inputs, refuse_existing
from loki.implanting.training.learned import Learned
from loki.implanting.training.rate_search import RateSearch
from loki.implanting.training.rows import ROWS_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS_PLOT = "training_loss.png"


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Attributes:
        output: directory of the trained LoKI model.
        steps: optimiser steps.
        loss: mean training loss over all steps, before an interruption too.
        trainable_parameters: number of trained values.
        changed_rows: number of selected rows that changed.
        seconds: wall-clock time of this run.
        learning_rate: the peak that was effective.
        learned: what the model does on the data before and after; None where no process holds it whole.
        search: how the rate was found, if it was.
    """

    output: Path
    steps: int
    loss: float
    trainable_parameters: int
    changed_rows: int
    seconds: float
    learning_rate: float
    learned: Learned | None
    search: RateSearch | None


def training_record(
    model: str | Path, settings: TrainingSettings, data: str, eval_data: str | None, positions: Path | None
) -> dict[str, Any]:
    """What decides a training's result, as JSON values; files by their content.

    Args:
        model: what is trained.
        settings: how.
        data: digest of the training data.
        eval_data: digest of the held-out data, if any.
        positions: positions file, for an ordinary model.
    """
    rows = json.dumps(read_positions(positions)) if positions else None
    return {
        "model": str(model),
        "data": data,
        "eval_data": eval_data,
        "positions": hashlib.sha256(rows.encode()).hexdigest() if rows else None,
        **settings.to_dict(),
    }


def finished_training(output: Path) -> bool:
    """Whether `output` holds a training that ran to its end."""
    return bool((read_record(output, TRAINING) or {}).get("finished"))


def trained_nothing(output: Path) -> bool:
    """Whether `output` holds a training whose budget of damage allowed no step, so that it is the model before."""
    return (read_record(output, TRAINING) or {}).get("changed_rows") == 0


def finish(
    output: Path, record: dict[str, Any], *, learning_rate: float, learned: Learned | None, changed_rows: int
) -> tuple[int, float]:
    """Say in `output` that its training ran to its end, and draw its loss.

    Args:
        output: where the back end left its trainer's state.
        record: what the training did.
        learning_rate: the peak that was effective.
        learned: what it has taught.
        changed_rows: number of selected rows that changed.

    Returns:
        Number of optimiser steps, and the mean loss over them.
    """
    state = read_trainer_state(output / STATE)
    plot_loss(state["log_history"], output / LOSS_PLOT)
    steps, loss = int(state["global_step"]), mean_loss(state["log_history"])
    result: dict[str, Any] = {"effective_learning_rate": learning_rate, "steps": steps, "mean_loss": loss}
    result |= {"changed_rows": changed_rows, "learned": learned.to_dict() if learned else None}
    write_record(output, TRAINING, {**record, **result, "finished": True})
    return steps, loss


def mean_loss(log: Sequence[dict[str, Any]]) -> float:
    """The mean training loss over all steps, from a trainer's log, which survives an interruption.

    Every entry is the mean over the steps since the one before. Without entries, what the trainer says of its last run.
    """
    entries = [(int(entry["step"]), float(entry["loss"])) for entry in log if "loss" in entry]
    if not entries:
        return float(next(entry["train_loss"] for entry in reversed(log) if "train_loss" in entry))
    steps = [0, *(step for step, _ in entries)]
    spans = [later - earlier for earlier, later in pairwise(steps)]
    return sum(loss * span for (_, loss), span in zip(entries, spans, strict=True)) / sum(spans)


def plot_loss(log: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training loss, and evaluation loss where there is one, over the steps, as PNG.

    Args:
        log: `trainer.state.log_history`.
        path: file to write; an old one is replaced.
    """
    with atomic_file(path, overwrite=True) as temporary:
        loss_figure(log).savefig(temporary, format="png", dpi=150)


def loss_figure(log: Sequence[dict[str, Any]]) -> "Figure":
    """Training loss, and evaluation loss where there is one, over the steps.

    Args:
        log: `trainer.state.log_history`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def memory_advice(error: BaseException) -> str:
    """The error of a full memory in one line, with what helps."""
    return (
        f"out of memory ({one_line(error)}): lower --batch-size or --max-length, pass --gradient-checkpointing, or "
        "train an adapter with a rank (`loki adapter --rank`)"
    )


def resume_advice(output: Path) -> str:
    """What is intact in the output of a training that broke off; empty if nothing is."""
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    return f"; {Path(last).name} is intact, and the same command continues from it" if last else ""


def prepare_output(
    output: Path, record: dict[str, Any], *inputs: str | Path | None, overwrite: bool, rows_kept_beside: bool = False
) -> Path | None:
    """Make `output` ready for a training.

    Args:
        output: where the training writes.
        record: what the training does, see `training_record`; kept in `output`.
        inputs: what it reads.
        overwrite: start anew where `output` holds a training.
        rows_kept_beside: whether a checkpoint is worth nothing without `ROWS_FILE`.

    Returns:
        The checkpoint to resume from, if `output` holds an unfinished training with the same record, or a finished
        one at a constant rate and with the same record but for fewer epochs or steps.

    Raises:
        LokiError: if `output` holds another finished training, checkpoints of another one, anything else, or an input.
    """
    if output.exists() and not output.is_dir():
        raise LokiError(f"{output} is a file: choose another --output")
    protect_inputs(output, *inputs)
    if overwrite:
        remove_recorded(output, TRAINING, *inputs)
    found = read_record(output, TRAINING)
    if found is None:
        refuse_existing(output, overwrite=False)
    elif found.get("finished"):
        _check_extends(output, found, record)
    elif get_last_checkpoint(str(output)) and (different := changes(found, record)):
        raise LokiError(f"{output} holds a training with other settings ({different}): pass --overwrite")
    write_record(output, TRAINING, record)
    for checkpoint in output.glob("checkpoint-*"):
        if not _is_complete(checkpoint, rows_kept_beside=rows_kept_beside):
            shutil.rmtree(checkpoint)  # interrupted while it was written
    last = get_last_checkpoint(str(output))
    return Path(last) if last else None


def _check_extends(output: Path, found: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuse to go on with a finished training, unless that is what a longer one would have done from the beginning.

    Raises:
        LokiError: says why it would not.
    """
    advice = "choose another --output, or pass --overwrite"
    longer = [name for name in ("epochs", "max_steps") if record.get(name) != found.get(name)]
    same = {**found, **{name: record.get(name) for name in ("epochs", "max_steps")}}
    if different := changes(same, record):
        raise LokiError(f"{output} holds a finished training with other settings ({different}): {advice}")
    if not longer:
        raise LokiError(f"{output} holds a finished training: {advice}")
    if any(not _rises(found.get(name), record.get(name)) for name in longer):
        raise LokiError(f"{output} holds a finished training that was no shorter ({changes(found, record)}): {advice}")
    if record.get("scheduler") != Scheduler.CONSTANT:
        raise LokiError(
            f"{output} holds a finished training, which cannot be extended: its {record.get('scheduler')} schedule has "
            f"followed its own number of steps; {advice} (with --scheduler constant, a training can be extended)"
        )
    if not get_last_checkpoint(str(output)):
        raise LokiError(f"{output} holds a finished training without a checkpoint to extend it from: {advice}")


def _rises(before: Any, now: Any) -> bool:
    """Whether there are more epochs or steps now; -1 steps say nothing."""
    return isinstance(before, int | float) and isinstance(now, int | float) and 0 < before < now


def _is_complete(checkpoint: Path, *, rows_kept_beside: bool) -> bool:
    """Whether everything that resuming reads was written: the trainer's state comes last but for the rows."""
    try:
        read_trainer_state(checkpoint / STATE)
        if rows_kept_beside:
            with safe_open(checkpoint / ROWS_FILE, framework="pt") as rows:
                return bool(rows.keys())
    except (LokiError, SafetensorError, OSError):
        return False
    return True
