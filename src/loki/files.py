"""Writing files so that nothing is ever half written: write beside, then rename."""

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from loki.errors import LokiError
from loki.system import flush_to_disk, is_running


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse to write the directory `path` over something unless `overwrite` is set.

    An empty directory counts as absent, and so does one that holds only what a killed run left.

    Raises:
        LokiError: if `path` exists and `overwrite` is False, or it would lie in a file.
    """
    _refuse_place(path)
    occupied = any(not _is_leftover(entry) for entry in path.iterdir()) if path.is_dir() else path.exists()
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


def protect_inputs(output: Path, *inputs: str | PathLike[str] | None) -> None:
    """Refuse an output over, in or around anything that is read; call it before anything is written.

    Files and folders are compared as the system knows them, so neither links nor upper and lower case deceive it.

    Args:
        output: file or directory that is going to be written or replaced.
        inputs: files and directories that are read; None and what does not exist (a hub id) is passed over.

    Raises:
        LokiError: if `output` is one of the inputs, a directory that holds one, or lies in one.
    """
    target, target_and_above = _identity(output), _identities_upwards(output)
    for path in [Path(given) for given in inputs if given is not None]:
        if not path.exists():
            continue
        if target is not None and target in _identities_upwards(path):
            raise LokiError(
                f"{output} is or holds the input {path}, which --overwrite would remove: choose another --output"
            )
        if _identity(path) in target_and_above:
            raise LokiError(f"{output} lies in the input {path}, where nothing may be written: choose another --output")


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it becomes `path` when the block ends without an error.

    Where `path` is a link, what it points to is written.

    Raises:
        LokiError: for what `refuse_existing_file` refuses.
    """
    path = path.resolve()
    remove_leftovers(path)
    refuse_existing_file(path, overwrite=overwrite)
    with _folder_for(path.parent):
        with _takes_files(path.parent):
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=_WRITTEN)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes files that only their owner can read; follow the user's umask instead.
            temporary.chmod(0o666 & ~_umask())
            refuse_existing_file(path, overwrite=overwrite)  # another process may have written it meanwhile
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
    path = path.resolve()
    remove_leftovers(path)
    refuse_existing(path, overwrite=overwrite)
    if Path.cwd().is_relative_to(path):
        raise LokiError(f"--output {path} would replace the folder you are in: name a directory in it")
    with _folder_for(path.parent):
        with _takes_files(path.parent):
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=_WRITTEN))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            refuse_existing(path, overwrite=overwrite)  # another process may have made it meanwhile
            _put(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Where the block fails, `folder` and those above it go again, as far as it made them and they are empty."""
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for place in absent:
            with suppress(OSError):  # it holds something, or was never made
                place.rmdir()
        raise


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless they are there.

    Raises:
        LokiError: in a place that takes none.
    """
    with _takes_files(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _takes_files(folder: Path) -> Iterator[None]:
    """Explain what /proc and its like say of a new file: that it does not exist."""
    try:
        yield
    except FileNotFoundError as error:
        raise LokiError(f"nothing can be written in {folder}: choose another --output") from error


@contextmanager
def _folder_for(folder: Path) -> Iterator[None]:
    with no_empty_folders(folder):
        make_folder(folder)
        yield


def empty_directory(path: Path, last: str) -> None:
    """Remove what a directory holds, the entry `last` after all others.

    A process that is killed meanwhile leaves what it has not moved, and a temporary folder of the file `last`, which
    goes when that is written again.
    """
    aside = Path(tempfile.mkdtemp(dir=path, prefix=_prefix(path / last), suffix=_REMOVED))
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == last):
        if entry != aside:
            entry.replace(aside / entry.name)
    shutil.rmtree(aside)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes of this machine left beside `path` while they wrote or replaced it.

    What stood at `path` before is put back, where a process was killed just before the new one took its place.
    """
    for leftover in sorted(path.parent.glob(f".{glob.escape(path.name)}.*")):
        if not _is_leftover(leftover):
            continue
        if leftover.suffix == _REPLACED and not path.exists():
            leftover.replace(path)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, overwrite: bool = False, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically.

    Raises:
        LokiError: if `path` exists and `overwrite` is False.
    """
    with atomic_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def cache_folder() -> Path:
    """Where what can be made again is kept: `$LOKI_CACHE`, or `loki` in the user's cache folder."""
    named = os.environ.get("LOKI_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "loki"


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replace_durably(temporary: Path, path: Path) -> None:
    """Rename a finished file so that even a power cut leaves either the old `path` or the whole new one."""
    flush_to_disk(temporary)
    temporary.replace(path)
    flush_to_disk(path.parent)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _identities_upwards(path: Path) -> set[tuple[int, int]]:
    """Of `path` and every folder above it, as far as they exist, links followed."""
    resolved = path.resolve()
    return {identity for place in (resolved, *resolved.parents) if (identity := _identity(place)) is not None}


_WRITTEN, _REPLACED, _REMOVED = ".tmp", ".old", ".gone"
# Of which machine, and which process there, a temporary file is: `.scores.h5.9f1c2ab4-4711.XXXXXXXX.tmp`.
_MACHINE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_LEFTOVER = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)\.[^.]+\.(tmp|old|gone)")


def _prefix(path: Path) -> str:
    return f".{path.name}.{_MACHINE}-{os.getpid()}."


def _put(temporary: Path, path: Path) -> None:
    """Let a finished directory take the place of what stands at `path`, which is there again if that fails."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        temporary.replace(path)
        return
    retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=_REPLACED))
    try:
        with suppress(FileNotFoundError):  # another process is just replacing it as well
            path.replace(retired)
        temporary.replace(path)
    finally:
        if path.exists():
            shutil.rmtree(retired)
        else:
            retired.replace(path)


def _is_leftover(path: Path) -> bool:
    """Whether `path` is a temporary file of a process of this machine that runs no more."""
    match = _LEFTOVER.fullmatch(path.name)
    if match is None or match["machine"] != _MACHINE:
        return False
    process = int(match["process"])
    return process != os.getpid() and not is_running(process)


def _refuse_place(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise LokiError(f"{path} is a device or a pipe: choose another --output")
    above = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise LokiError(f"{path} cannot be written, because {above} is a file: choose another --output")


def _refuse_occupied(path: Path, occupied: bool) -> None:
    if occupied:
        raise LokiError(f"{path} exists already: choose another --output, or pass --overwrite to replace it")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
