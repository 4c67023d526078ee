"""Writing files so that nothing is ever half written: write beside, then rename."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loki.errors import LokiError


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse to write the directory `path` over something unless `overwrite` is set.

    An empty directory counts as absent.

    Raises:
        LokiError: if `path` exists and `overwrite` is False, or it would lie in a file.
    """
    _refuse_place(path)
    occupied = any(path.iterdir()) if path.is_dir() else path.exists()
    _refuse_occupied(path, occupied and not overwrite)


def refuse_existing_file(path: Path, *, overwrite: bool) -> None:
    """Refuse to write the file `path` over something unless `overwrite` is set.

    Raises:
        LokiError: if `path` exists and `overwrite` is False, it is a directory, or it would lie in a file.
    """
    _refuse_place(path)
    if path.is_dir():
        raise LokiError(f"{path} is a directory: name a file in it as --output")
    _refuse_occupied(path, path.exists() and not overwrite)


def protect_inputs(output: Path, *inputs: str | Path | None) -> None:
    """Refuse an output whose writing would remove what is read; call it before anything is written.

    Args:
        output: file or directory that is going to be written or replaced.
        inputs: files and directories that are read; None and what does not exist (a hub id) is passed over.

    Raises:
        LokiError: if `output` is one of the inputs, or a directory that holds one.
    """
    target = output.resolve()
    for path in [Path(given) for given in inputs if given is not None]:
        if path.exists() and path.resolve().is_relative_to(target):
            raise LokiError(
                f"{output} is or holds the input {path}, which --overwrite would remove: choose another --output"
            )


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it becomes `path` when the block ends without an error.

    Where `path` is a link, what it points to is written.

    Raises:
        LokiError: for what `refuse_existing_file` refuses.
    """
    refuse_existing_file(path, overwrite=overwrite)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; follow the user's umask instead.
        temporary.chmod(0o666 & ~_umask())
        replace_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; it becomes `path` when the block ends without an error.

    A directory that stood at `path` is removed only after the new one is complete. Where `path` is a link, what it
    points to is written.

    Raises:
        LokiError: for what `refuse_existing` refuses, or if `path` is or holds the working directory.
    """
    refuse_existing(path, overwrite=overwrite)
    path = path.resolve()
    if Path.cwd().is_relative_to(path):
        raise LokiError(f"--output {path} would replace the folder you are in: name a directory in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.is_dir():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            path.replace(retired)
            temporary.replace(path)
            shutil.rmtree(retired)
        else:
            path.unlink(missing_ok=True)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any, *, overwrite: bool = False, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically.

    Raises:
        LokiError: if `path` exists and `overwrite` is False.
    """
    with atomic_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, *, what: str) -> Any:
    """Read a JSON file; `what` names its role in error messages ("positions file").

    Raises:
        LokiError: if the file is missing, unreadable or not JSON.
    """
    if not path.is_file():
        raise LokiError(f"{what} {path} does not exist: check the path")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits, and of deep nesting
        raise LokiError(f"{what} {path} is not JSON ({error})") from error


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replace_durably(temporary: Path, path: Path) -> None:
    """Rename a finished file so that even a power cut leaves either the old `path` or the whole new one."""
    _flush_to_disk(temporary)
    temporary.replace(path)
    _flush_to_disk(path.parent)


def _refuse_place(path: Path) -> None:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise LokiError(f"{path} cannot be written, because {above} is a file: choose another --output")


def _refuse_occupied(path: Path, occupied: bool) -> None:
    if occupied:
        raise LokiError(f"{path} exists already: choose another --output, or pass --overwrite to replace it")


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
