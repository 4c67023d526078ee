"""Writing HDF5 files where a write may fail: on a full disk, beyond a limit or a quota, on a failing device.

Once a write has failed, HDF5 cannot close the file any more: it crashes the process, then or when that ends. So HDF5
is never told of a failure: what cannot be written is kept in memory until the file is closed, and we raise the error.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import h5py

T = TypeVar("T")


class HDF5Output:
    """An HDF5 file that is created and written. It must be closed, also after an error.

    Args:
        path: the file; an existing one is replaced.

    Attributes:
        file: the open file; to be used within `do` only.

    Raises:
        OSError: if it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._stored = UnfailingFile(path)
        # Handlers of signals run in the main thread alone: an exception of theirs (Ctrl-C) never comes up inside HDF5.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.file: h5py.File = self._thread.submit(
            h5py.File, path, "w", driver="fileobj", fileobj=self._stored
        ).result()

    def do(self, work: Callable[..., T], *arguments: object) -> T:
        """Call a function that uses the file.

        Raises:
            OSError: if anything of the file could not be written, now or before: it is useless, and must be closed.
        """
        result = self._thread.submit(work, *arguments).result()
        self._require_written()
        return result

    def close(self) -> None:
        """Close it.

        Raises:
            OSError: as `do` does.
        """
        try:
            self._thread.submit(self.file.close).result()
        finally:
            self._thread.shutdown()
            self._stored.close()
        self._require_written()

    def _require_written(self) -> None:
        if self._stored.error is not None:
            raise self._stored.error


class UnfailingFile:
    """A file as the driver `fileobj` of h5py wants it, whose writing never fails.

    Args:
        path: the file; an existing one is replaced.

    Attributes:
        error: the first failure, None until there is one. From then on what is written is kept in memory, and read
            from there.

    Raises:
        OSError: if it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._path = path
        self._file = path.open("w+b", buffering=0)
        self._position = 0
        self._kept: list[tuple[int, bytes]] = []  # position and bytes; the last one counts where they overlap

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position, from the start or the end of the file."""
        if whence == os.SEEK_END:
            offset += max(self._file.seek(0, os.SEEK_END), *(start + len(data) for start, data in self._kept), 0)
        self._position = offset
        return offset

    def tell(self) -> int:
        """The position."""
        return self._position

    def write(self, data: memoryview) -> int:
        """Write bytes at the position; their number."""
        view = memoryview(data)
        if self.error is None:
            self._try(lambda: self._write(view))
        if self.error is not None:
            self._kept.append((self._position, bytes(view)))
        self._position += len(view)
        return len(view)

    def readinto(self, buffer: memoryview) -> int:
        """Read as many bytes as the buffer takes, zeros beyond the end of the file; their number."""
        view, first = memoryview(buffer), self._position
        count = self._try(lambda: self._read(view)) or 0
        view[count:] = bytes(len(view) - count)
        for start, data in self._kept:
            low, high = max(start, first), min(start + len(data), first + len(view))
            if low < high:
                view[low - first : high - first] = data[low - start : high - start]
        self._position += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        """Set the size of the file, as long as nothing has failed."""
        if self.error is None:
            self._try(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        """Nothing: what is written goes to the system at once."""

    def close(self) -> None:
        """Close the file."""
        self._try(self._file.close)

    def _write(self, view: memoryview) -> None:
        self._file.seek(self._position)
        while view:
            view = view[self._file.write(view) :]

    def _read(self, view: memoryview) -> int:
        self._file.seek(self._position)
        return self._file.readinto(view)

    def _try(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except OSError as error:
            self.error = self.error or OSError(error.errno, error.strerror, str(self._path))
            return None
