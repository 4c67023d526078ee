"""The output directory of a training: what it may hold before, and which checkpoint to continue from."""

import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from loki.errors import LokiError
from loki.files import read_json, write_json

RECORD = "training.json"


def finished_training(output: Path) -> bool:
    """Whether `output` holds a training that ran to its end."""
    path = output / RECORD
    return path.is_file() and bool(read_json(path, what="training record").get("finished"))


def prepare_output(output: Path, record: dict[str, Any], *, overwrite: bool) -> Path | None:
    """Make `output` ready for a training.

    Args:
        output: where the training writes.
        record: what the training does, as JSON values; kept in `output`.
        overwrite: start anew where `output` holds something.

    Returns:
        The checkpoint to resume from, if `output` holds an unfinished training with the same record.

    Raises:
        LokiError: if `output` holds a finished training, checkpoints of another one, or anything else.
    """
    if overwrite and output.is_dir():
        shutil.rmtree(output)
    if output.exists() and not output.is_dir():
        raise LokiError(f"{output} is a file: choose another --output")
    if (output / RECORD).is_file():
        found = read_json(output / RECORD, what="training record")
        different = [
            f"{key} was {found.get(key)}, now {value}" for key, value in record.items() if found.get(key) != value
        ]
        if found.get("finished"):
            raise LokiError(f"{output} holds a finished training: choose another --output, or pass --overwrite")
        if different and get_last_checkpoint(str(output)):
            raise LokiError(f"{output} holds a training with other settings ({'; '.join(different)}): pass --overwrite")
    elif output.is_dir() and any(output.iterdir()):
        raise LokiError(f"{output} exists already: choose another --output, or pass --overwrite to replace it")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / RECORD, record, overwrite=True)
    for checkpoint in sorted(output.glob("checkpoint-*"), reverse=True):
        if not (checkpoint / "trainer_state.json").is_file():
            shutil.rmtree(checkpoint)  # interrupted while it was written
    last = get_last_checkpoint(str(output))
    return Path(last) if last else None
