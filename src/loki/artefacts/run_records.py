"""Records that a run leaves in its output directory, to know its own work when it is started again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loki.errors import LokiError
from loki.files import empty_directory, make_folder, no_empty_folders, protect_inputs, remove_leftovers, write_json
from loki.inputs import checked, read_json


def remove_recorded(output: Path, record: str, *inputs: str | Path | None) -> None:
    """Remove what an output directory holds, if the same kind of run has made it.

    Args:
        output: the directory; nothing is done if there is none, or an empty one.
        record: name of the record file in it.
        inputs: what the new run reads, which must not lie in it.

    Raises:
        LokiError: if it holds an input, or anything but such a run.
    """
    protect_inputs(output, *inputs)
    remove_leftovers(output.resolve())
    remove_leftovers(output / record)
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / record).is_file():
        raise LokiError(
            f"{output} holds no {record}, so --overwrite leaves it alone: remove it yourself, or choose another"
        )
    empty_directory(output, record)


@contextmanager
def nothing_left_of_none(output: Path, record: str) -> Iterator[None]:
    """Where the block fails before it has left more than its record in `output`, leave `output` as it was found.

    Args:
        output: the output directory, which need not exist.
        record: name of the record file in it.
    """
    if (output / record).exists():
        yield
        return
    with no_empty_folders(output):
        try:
            yield
        except BaseException:
            if output.is_dir() and [entry.name for entry in output.iterdir()] == [record]:
                (output / record).unlink()
            raise


def read_record(output: Path, record: str) -> dict[str, Any] | None:
    """The record in an output directory; None if there is none.

    Raises:
        LokiError: if it is damaged.
    """
    path = output / record
    if not path.is_file():
        return None
    advice = "it is damaged: pass --overwrite to start anew, or choose another --output"
    return dict(checked(dict[str, Any], read_json(path, what="record"), f"record {path}", advice=advice))


def write_record(output: Path, record: str, values: Mapping[str, Any]) -> None:
    """Write the record of an output directory, which is made if it is missing."""
    make_folder(output)
    write_json(output / record, dict(values), overwrite=True)
