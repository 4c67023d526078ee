"""One process at a time in an output directory that several phases or attempts write into."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loki.errors import LokiError
from loki.files import make_folder, no_empty_folders
from loki.system import lock_folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder, which is made if it is missing, until the block ends.

    The system lets go of it when the process ends, however it ends, and nothing is written for it. Where folders cannot
    be locked (Windows, some network file systems), they are not. Several processes of one run: only the main one calls
    this.

    Raises:
        LokiError: if another process works there now, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise LokiError(f"{folder} is a file: choose another --output")
    with no_empty_folders(folder):
        make_folder(folder)
        try:
            holding = lock_folder(folder)
        except BlockingIOError as error:
            raise LokiError(
                f"another process is working in {folder}: wait for it, or choose another --output"
            ) from error
        with holding:
            yield
