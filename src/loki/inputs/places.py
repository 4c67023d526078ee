"""What is at a path, looked at before it is opened."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from loki.errors import LokiError
from loki.inputs.reading import shown

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MOST_FILES = 100_000
_POINTER_BYTES = 1024  # Git LFS's pointers are smaller


def require_file(path: Path, what: str, *, advice: str = "check the path") -> int:
    """Check that a file can be read: it is there, a regular file (a pipe would wait for ever), and no Git LFS pointer.

    Args:
        path: the file; links are followed.
        what: its role, for the message: "positions file".
        advice: what to do where it does not exist.

    Returns:
        Its size in bytes.

    Raises:
        LokiError: if it cannot be read, with the reason.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LokiError(f"{what} {_name(path)} does not exist: {advice}") from error
    except (OSError, ValueError) as error:  # no permission, a circle of links, a name too long, a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise LokiError(f"{what} {_name(path)} cannot be read ({reason}): check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise LokiError(f"{what} {path} is a directory: name a file")
    if not stat.S_ISREG(status.st_mode):
        raise LokiError(f"{what} {path} is a device or a pipe: name a regular file")
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER)) if status.st_size < _POINTER_BYTES else b""
    except OSError as error:
        raise LokiError(f"{what} {path} cannot be read ({error.strerror}): check its permissions") from error
    if start == _LFS_POINTER:
        raise LokiError(f"{what} {path} is a Git LFS pointer, not the file itself: run `git lfs pull` there")
    return status.st_size


def files_below(folder: Path, what: str) -> Iterator[Path]:
    """All files in a folder and in those below it, but for hidden ones; folders that cannot be read are passed over.

    Args:
        folder: the folder.
        what: its role, for the message.

    Raises:
        LokiError: if they are so many that it can hardly be the folder that was meant.
    """
    seen = 0
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        seen += len(folders) + len(names)
        if seen > MOST_FILES:
            raise LokiError(f"{what} {folder} holds more than {MOST_FILES:,} files: name the folder of the data alone")
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _name(path: Path, limit: int = 500) -> str:
    """A path for a message; cut where it is absurdly long, and without null characters."""
    return str(path) if len(str(path)) <= limit and str(path).isprintable() else shown(str(path), limit)
