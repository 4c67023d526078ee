"""What POSIX systems and Windows do differently. No other module calls what only one of them has.

Developed and tested on Linux; the branches for Windows have been read, not run.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

WINDOWS = sys.platform == "win32"


def lock(file: IO[Any]) -> None:
    """Lock an open file until it is closed or this process ends, however it ends.

    Raises:
        BlockingIOError: if another process holds the lock.
    """
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:  # what a lock that is held is called there
            raise BlockingIOError(*error.args) from error
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Lock a folder until the block ends, or this process; nothing happens where folders cannot be locked.

    Raises:
        BlockingIOError: if another process holds the lock.
    """
    if sys.platform == "win32":
        return nullcontext()
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system that locks only what is open for writing, or nothing
        os.close(handle)
        return nullcontext()
    return _closing(handle)


@contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)


def is_running(process: int) -> bool:
    """Whether a process of this machine with this id runs; True where that cannot be told."""
    if WINDOWS:  # there os.kill ends the process, whatever the signal
        import psutil

        return bool(psutil.pid_exists(process))
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def flush_to_disk(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, survive a power cut."""
    if WINDOWS and path.is_dir():  # folders cannot be opened there, and names are written with the files
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def start_group(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, which Ctrl-C in the terminal does not reach.

    Args:
        words: the program and its arguments.
        **options: of `subprocess.Popen`.
    """
    if sys.platform == "win32":
        return subprocess.Popen(words, creationflags=subprocess.CREATE_NEW_PROCESS_GROUP, **options)
    return subprocess.Popen(words, start_new_session=True, **options)


def end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ask the processes of a group to end, kill those that do not, and wait for the first of them.

    Args:
        process: what `start_group` returned.
        grace: seconds between asking and killing.
    """
    if sys.platform == "win32":
        process.terminate()  # its workers see their input close
        process.wait()
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
