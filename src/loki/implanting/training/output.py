"""The output directory of a training: what it may hold before, and which checkpoint to continue from."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import get_last_checkpoint

from loki.artefacts.positions import read_positions
from loki.artefacts.run_records import changes, read_record, remove_recorded, write_record
from loki.errors import LokiError
from loki.files import protect_inputs, read_json, refuse_existing, sha256_of_file
from loki.implanting.training.rows import ROWS_FILE
from loki.implanting.training.settings import TrainingSettings

RECORD = "training.json"


def training_record(
    backend: str,
    model: str | Path,
    settings: TrainingSettings,
    *,
    data: Path,
    eval_data: Path | None,
    positions: Path | None,
    **more: Any,
) -> dict[str, Any]:
    """What decides a training's result, as JSON values; files by their content.

    Args:
        backend: who trains.
        model: what is trained.
        settings: how.
        data: training data.
        eval_data: held-out data.
        positions: positions file, for an ordinary model.
        **more: what only this backend has.
    """
    rows = json.dumps(read_positions(positions)) if positions else None
    return {
        "backend": backend,
        "model": str(model),
        "data": sha256_of_file(data),
        "eval_data": sha256_of_file(eval_data) if eval_data else None,
        "positions": hashlib.sha256(rows.encode()).hexdigest() if rows else None,
        **settings.to_dict(),
        **more,
    }


def finished_training(output: Path) -> bool:
    """Whether `output` holds a training that ran to its end."""
    return bool((read_record(output, RECORD) or {}).get("finished"))


def finish_record(output: Path, record: dict[str, Any]) -> None:
    """Say in `output` that its training ran to its end."""
    write_record(output, RECORD, {**record, "finished": True})


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
        The checkpoint to resume from, if `output` holds an unfinished training with the same record.

    Raises:
        LokiError: if `output` holds a finished training, checkpoints of another one, anything else, or an input.
    """
    if output.exists() and not output.is_dir():
        raise LokiError(f"{output} is a file: choose another --output")
    protect_inputs(output, *inputs)
    if overwrite:
        remove_recorded(output, RECORD, *inputs)
    found = read_record(output, RECORD)
    if found is None:
        refuse_existing(output, overwrite=False)
    elif found.get("finished"):
        raise LokiError(f"{output} holds a finished training: choose another --output, or pass --overwrite")
    elif get_last_checkpoint(str(output)) and (different := changes(found, record)):
        raise LokiError(f"{output} holds a training with other settings ({different}): pass --overwrite")
    write_record(output, RECORD, record)
    for checkpoint in output.glob("checkpoint-*"):
        if not _whole(checkpoint, rows_kept_beside=rows_kept_beside):
            shutil.rmtree(checkpoint)  # interrupted while it was written
    last = get_last_checkpoint(str(output))
    return Path(last) if last else None


def _whole(checkpoint: Path, *, rows_kept_beside: bool) -> bool:
    """Whether everything that resuming reads was written: the trainer's state comes last but for the rows."""
    try:
        read_json(checkpoint / "trainer_state.json", what="state of the trainer")
        if rows_kept_beside:
            with safe_open(checkpoint / ROWS_FILE, framework="pt") as rows:
                return bool(rows.keys())
    except (LokiError, SafetensorError, OSError):
        return False
    return True
