"""Counting for several quotas at once, in many processes, so that it can be interrupted at any moment."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loki.analysis.work_folder import BatchResults, WorkFolder
from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.files import atomic_file
from loki.selection.select import make_counter
from loki.selection.strategies import SelectionSettings

_FLUSH_EVERY = 32  # batches


class SelectionCounts:
    """What the selections for some quotas need to know of the batches counted so far; O(L * D) memory.

    Args:
        selection: a strategy that counts.
        quotas: percentages.
        layers: number of layers L.
        hidden: number of rows D per layer.

    Attributes:
        batches: numbers of the batches that are counted.

    Raises:
        LokiError: for an unknown strategy or a quota that is out of range or selects nothing.
    """

    def __init__(self, selection: SelectionSettings, quotas: Sequence[float], layers: int, hidden: int) -> None:
        self._arguments = (selection, quotas, layers, hidden)
        self._counters = {quota: make_counter(selection, quota, layers, hidden) for quota in quotas}
        self.batches: set[int] = set()

    def empty(self) -> "SelectionCounts":
        """Counts of the same kind that hold nothing yet."""
        return SelectionCounts(*self._arguments)

    def add(self, number: int, scores: NDArray[np.float32]) -> None:
        """Count batch `number` with scores `[n, L, D]`.

        Raises:
            LokiError: if it is counted already.
        """
        self._claim({number})
        for counter in self._counters.values():
            counter.update(scores)

    def merge(self, other: "SelectionCounts") -> None:
        """Add what `other` counted.

        Raises:
            LokiError: if both counted the same batch.
        """
        self._claim(other.batches)
        for quota, counter in self._counters.items():
            counter.merge(other._counters[quota])

    def positions(self) -> dict[float, Positions]:
        """The selection for every quota."""
        return {quota: counter.positions() for quota, counter in self._counters.items()}

    def save(self, path: Path) -> None:
        """Save to a file, atomically."""
        arrays: dict[str, Any] = {
            f"{quota!r}/{name}": array
            for quota, counter in self._counters.items()
            for name, array in counter.state().items()
        }
        with atomic_file(path, overwrite=True) as temporary, temporary.open("wb") as stream:
            np.savez(stream, batches=np.array(sorted(self.batches), dtype=np.int64), **arrays)

    def load(self, path: Path) -> "SelectionCounts":
        """Counts of the same kind from a file that `save` wrote."""
        loaded = self.empty()
        with np.load(path, allow_pickle=False) as arrays:
            loaded.batches = set(arrays["batches"].tolist())
            for quota, counter in loaded._counters.items():
                counter.restore({name: arrays[f"{quota!r}/{name}"] for name in counter.state()})
        return loaded

    @staticmethod
    def batches_in(path: Path) -> set[int]:
        """Numbers of the batches that are counted in a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return set(arrays["batches"].tolist())

    def _claim(self, numbers: set[int]) -> None:
        twice = self.batches & numbers
        if twice:
            raise LokiError(f"batches {sorted(twice)[:5]} were counted twice: run again with --overwrite")
        self.batches |= numbers


class CountingLog:
    """The counts of one process, kept in the work folder.

    Batches are counted in memory and saved now and then. Until they are saved, the stored batches themselves are the
    record; afterwards, unless they are wanted for something else, they are removed.

    Args:
        work: folder of the run.
        counts: counts of the wanted kind, holding nothing.
        rank: number of this process.
        keep_batches: leave stored batches where they are.
    """

    def __init__(self, work: WorkFolder, counts: SelectionCounts, rank: int, *, keep_batches: bool) -> None:
        self._work = work
        self._keep_batches = keep_batches
        self._path = work.counts / f"{rank:05d}.npz"
        self._unsaved: list[int] = []
        self.counts = counts

    def resume(self) -> set[int]:
        """Take over whatever the processes of an interrupted run have counted or stored, in the main process alone.

        Returns:
            The batches that are done.
        """
        saved = self._saved()
        self.counts = self.total()
        for number in self._work.stored_batches() - self.counts.batches:
            self.counts.add(number, self._work.read_batch(number).scores)
        if self.counts.batches:
            self.counts.save(self._path)
        for path in saved:
            if path != self._path:
                path.unlink()
        self._drop(self._work.stored_batches())
        return set(self.counts.batches)

    def add(self, number: int, results: BatchResults) -> None:
        """Count a batch that has been stored."""
        self.counts.add(number, results.scores)
        self._unsaved.append(number)
        if len(self._unsaved) >= _FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Save the counts."""
        if self._unsaved:
            self.counts.save(self._path)
            self._drop(self._unsaved)
            self._unsaved = []

    def total(self) -> SelectionCounts:
        """What all processes have saved, together."""
        total = self.counts.empty()
        for path in sorted(self._saved(), key=lambda path: -len(self.counts.batches_in(path))):
            # A kill between saving what was taken over and removing its sources leaves sources behind.
            if not self.counts.batches_in(path) <= total.batches:
                total.merge(self.counts.load(path))
        return total

    def _saved(self) -> list[Path]:
        return sorted(self._work.counts.glob("[0-9]*.npz"))

    def _drop(self, numbers: Iterable[int]) -> None:
        if not self._keep_batches:
            for number in numbers:
                self._work.delete_batch(number)
