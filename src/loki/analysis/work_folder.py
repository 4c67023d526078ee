"""Results of a run that has not finished, kept beside its output so that nothing is lost.

`<output>.partial/` holds `run.json` (what the run computes), `batches/` (one file per finished batch), and what
counting needs. Every file is written beside and renamed, so each is whole at any moment; the folder is removed when the
output is complete.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from loki.analysis.options import AUTO
from loki.artefacts.differences import differences
from loki.artefacts.expert_scores import ExpertScores
from loki.errors import LokiError
from loki.files import atomic_file, make_folder, no_empty_folders, write_json
from loki.inputs import Strict, checked, read_json, require_file
from loki.system import lock


@dataclass(frozen=True)
class BatchResults:
    """The attributions of one batch of `n` samples.

    Attributes:
        indices: `[n]`; which samples of the run.
        scores: `[n, L, D]`.
        targets: `[n]`; the attributed tokens.
        probabilities: `[n]`; their probabilities.
        completeness: `[n]`; see `loki.kva.attributor.Attribution`.
        experts: the scores of each expert; samples are places in `indices`.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    completeness: NDArray[np.float64]
    experts: ExpertScores


_ARRAYS = tuple(field.name for field in fields(BatchResults) if field.name != "experts")


class _Chosen(Strict):
    """What a run has settled by itself, and goes on with."""

    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    memory_budget: Annotated[int, Field(ge=0)] | None = None


class WorkFolder:
    """The folder of an unfinished run.

    Args:
        path: the folder; `hold` makes it, and removes it if no run was begun or the run was completed.

    Attributes:
        counts: folder for what each process has counted, see `loki.analysis.selection_counts`.
        stability: file of the stopping rule, see `loki.analysis.stability`.
        assembled: where the output grows until it is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run = path / "run.json"
        self._lock = path / "lock"
        self._stop = path / "stop"
        self._batches = path / "batches"
        self.counts = path / "counts"
        self.stability = path / "stability.json"
        self.assembled = path / "assembled.h5"

    @property
    def begun(self) -> bool:
        """Whether an unfinished run is kept here."""
        return self._run.exists()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from working in the folder at the same time. Only the main process of a run does this.

        Raises:
            LokiError: if another run works there now.
        """
        # The system releases the lock when the process ends, however it ends.
        with no_empty_folders(self.path.parent), self._locked():
            try:
                yield
            except LokiError:
                if not any(found.is_file() for folder in (self._batches, self.counts) for found in folder.glob("*")):
                    self.clear()  # nothing was computed, so there is nothing to continue
                raise
            finally:
                if not self.begun:
                    self.remove()

    def begin(self, identity: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any]:
        """Start a run, or continue the interrupted one in the folder.

        Args:
            identity: what decides the results. A value of `auto` agrees with any.
            overwrite: discard an interrupted run of another identity.

        Returns:
            The record of the interrupted run, or an empty dict if there was none.

        Raises:
            LokiError: if an interrupted run of another identity is in the folder; the text names the differences.
        """
        found = self._recorded()
        different = differences(found, identity, (name for name in identity if identity[name] != AUTO))
        if found and different:
            if not overwrite:
                raise LokiError(
                    f"{self.path} holds an interrupted run with other settings (there and now: "
                    f"{'; '.join(different)}): repeat its command to continue it, or pass --overwrite to discard it"
                )
            found = {}
        if not found:
            self.clear()
        self._stop.unlink(missing_ok=True)
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink()
        self._batches.mkdir(exist_ok=True)
        self.counts.mkdir(exist_ok=True)
        return found

    def record(self, values: Mapping[str, Any]) -> None:
        """Add to the record of what the run computes. Without a record the folder counts as empty."""
        write_json(self._run, {**self._recorded(), **values}, overwrite=True)

    def stop(self) -> None:
        """Tell all processes of this run to leave it after the batch in hand."""
        with suppress(OSError):  # a full disk; they learn of it when they are done
            self._stop.touch()

    @property
    def stopped(self) -> bool:
        """Whether one of them has told so since the run was begun or continued."""
        return self._stop.exists()

    def write_batch(self, number: int, results: BatchResults) -> None:
        """Store a finished batch; when this returns, not even a power cut loses it."""
        with atomic_file(self._batch(number), overwrite=True) as temporary, temporary.open("wb") as stream:
            arrays = {name: getattr(results, name) for name in _ARRAYS}
            experts = {f"experts_{field.name}": getattr(results.experts, field.name) for field in fields(ExpertScores)}
            np.savez(stream, **arrays, **experts)

    def read_batch(self, number: int) -> BatchResults:
        """A stored batch.

        Raises:
            LokiError: if it is missing or damaged.
        """
        path = self._batch(number)
        try:
            require_file(path, "stored batch")  # a pipe would be waited on for ever
            with np.load(path, allow_pickle=False) as arrays:
                experts = {field.name: arrays[f"experts_{field.name}"] for field in fields(ExpertScores)}
                experts["experts"] = int(experts["experts"])
                return BatchResults(**{name: arrays[name] for name in _ARRAYS}, experts=ExpertScores(**experts))
        except Exception as error:  # the zip reader raises many kinds
            raise LokiError(
                f"stored batch {path} is missing or damaged ({type(error).__name__}): remove it and run the same "
                "command again"
            ) from error

    def stored_batches(self) -> set[int]:
        """Numbers of the batches stored here."""
        return {int(path.stem) for path in self._batches.glob("[0-9]*.npz")}

    def delete_batch(self, number: int) -> None:
        """Remove a stored batch, if it is there."""
        self._batch(number).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all results. The record goes first: what is left without it counts for nothing."""
        for path in (self._run, self._stop, self.stability, self.assembled):
            path.unlink(missing_ok=True)
        for folder in (self._batches, self.counts):
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder, unless somebody else keeps something in it."""
        self.clear()
        self._lock.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def _locked(self) -> IO[str]:
        while True:
            make_folder(self.path)
            file = self._lock.open("w")
            try:
                lock(file)
                # Whoever finished in between has removed the file that was opened: then nobody else would see its lock.
                if self._lock.exists() and os.path.samestat(os.fstat(file.fileno()), self._lock.stat()):
                    return file
            except BlockingIOError as error:
                file.close()
                raise LokiError(
                    f"another process is working in {self.path}: wait for it, or choose another --output"
                ) from error
            file.close()

    def _recorded(self) -> dict[str, Any]:
        if not self.begun:
            return {}
        found = read_json(self._run, what="record of the interrupted run")
        advice = f"it is damaged: remove {self.path}, and run the same command again"
        values = dict(checked(dict[str, Any], found, f"record {self._run}", advice=advice))
        checked(_Chosen, values, f"record {self._run}", advice=advice)
        return values

    def _batch(self, number: int) -> Path:
        return self._batches / f"{number:08d}.npz"


def work_folder_of(output: Path) -> WorkFolder:
    """The work folder that belongs to an output file or folder."""
    return WorkFolder(output.with_name(f"{output.name}.partial"))
