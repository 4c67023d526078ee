"""The scores file: HDF5, one row of `[L, D]` scores per sample, and beside it what the samples were.

Layout, at the root of the file:

- `dataset` `[N, L, D]` float32, chunked and compressed: the scores by sample, layer and row of `down_proj.weight`;
- `sample_ids`, `sample_digests`, `subjects` `[N]` text; `target_token_ids` `[N]` int64; `target_probabilities`,
  `completeness` `[N]` float64;
- `expert_scores` `[N, L, E, D]`, where scores per expert were asked for: see `loki.artefacts.expert_scores`;
- attributes: the fields of `Provenance`, and `samples_done`.

Files of the published project hold `dataset` (float16) and nothing else; `ScoresReader` reads them too.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from loki.artefacts.expert_scores import NAME as EXPERT_SCORES
from loki.artefacts.expert_scores import ExpertScores, expert_scores_dataset
from loki.artefacts.hdf5_output import HDF5Output
from loki.artefacts.provenance import Provenance
from loki.artefacts.scores_schema import sample_column, scores_dataset
from loki.errors import LokiError
from loki.inputs import reading, require_file

_CHUNK_BYTES = 2**20
_READ_BYTES = 2**24
_ZLIB_HEADER = b"\x78\x01"  # fastest level
_ZLIB_LEVEL, _ZLIB_WINDOW, _ZLIB_MEMORY = 1, -15, 9  # a negative window: no header, so that streams can be joined
_TEXT_COLUMNS = ("sample_ids", "sample_digests", "subjects")
_NUMBER_COLUMNS = {"target_token_ids": np.int64, "target_probabilities": np.float64, "completeness": np.float64}
_UNKNOWN: dict[str, Any] = {"target_token_ids": -1, "target_probabilities": np.nan, "completeness": np.nan}


@dataclass(frozen=True)
class SampleRecords:
    """What the file holds beside the scores, one entry per sample.

    Attributes:
        sample_ids: unique names.
        sample_digests: hash of each sample's token ids and target, to tell equal names with other contents apart.
        subjects: empty where the data does not say.
        target_token_ids: `[n]`; the attributed token. -1 where a published file does not say.
        target_probabilities: `[n]`; its probability after the prompt. NaN where unknown.
        completeness: `[n]`; see `loki.kva.attributor.Attribution`. NaN where unknown.
    """

    sample_ids: list[str]
    sample_digests: list[str]
    subjects: list[str]
    target_token_ids: NDArray[np.int64]
    target_probabilities: NDArray[np.float64]
    completeness: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def part(self, start: int, stop: int) -> "SampleRecords":
        """The records of samples `start` to `stop`."""
        return SampleRecords(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


class ScoresWriter:
    """Writes a scores file from front to back; a context manager.

    HDF5 does not survive a crash in the middle of a write: write to a temporary path and rename it.

    Args:
        path: the file to create; an existing one is replaced.
        layers: number of layers L.
        hidden: number of rows D per layer.
        provenance: what the scores come from.

    Raises:
        OSError: if the file cannot be written; there, in `append` or at the end of the block.
    """

    def __init__(self, path: Path, layers: int, hidden: int, provenance: Provenance) -> None:
        self._unwritten: NDArray[np.float32] = np.empty((0, layers, hidden), np.float32)  # less than a chunk
        self._output = HDF5Output(path)
        try:
            self._output.do(self._create, layers, hidden, provenance)
        except BaseException:
            with suppress(OSError):
                self._output.close()
            raise

    def _create(self, layers: int, hidden: int, provenance: Provenance) -> None:
        file = self._output.file
        self._dataset = file.create_dataset(
            "dataset",
            shape=(0, layers, hidden),
            maxshape=(None, layers, hidden),
            chunks=(max(1, _CHUNK_BYTES // (4 * layers * hidden)), layers, hidden),
            dtype=np.float32,
            shuffle=True,
            compression="gzip",
        )
        for name in _TEXT_COLUMNS:
            file.create_dataset(name, shape=(0,), maxshape=(None,), dtype=h5py.string_dtype())
        for name, dtype in _NUMBER_COLUMNS.items():
            file.create_dataset(name, shape=(0,), maxshape=(None,), dtype=dtype)
        file.attrs.update({**provenance.attributes(), "samples_done": 0})

    def append(self, scores: NDArray[np.float32], records: SampleRecords, experts: ExpertScores | None = None) -> None:
        """Append the scores `[n, L, D]` and records of `n` samples, and the scores of their experts.

        Raises:
            OSError: if they cannot be written.
        """
        self._output.do(self._append, scores, records, experts)

    def _append(self, scores: NDArray[np.float32], records: SampleRecords, experts: ExpertScores | None) -> None:
        file = self._output.file
        start = int(file.attrs["samples_done"])
        stop = start + len(records)
        self._dataset.resize(stop, axis=0)
        size = self._dataset.chunks[0]
        self._unwritten = np.concatenate([self._unwritten, scores])
        while len(self._unwritten) >= size:
            self._write_chunk(self._unwritten[:size], stop - len(self._unwritten))
            self._unwritten = self._unwritten[size:]
        for name in (*_TEXT_COLUMNS, *_NUMBER_COLUMNS):
            column = file[name]
            column.resize(stop, axis=0)
            column[start:stop] = getattr(records, name)
        if experts is not None and experts.experts:
            self._append_experts(experts, start, stop)
        file.attrs["samples_done"] = stop

    def _append_experts(self, experts: ExpertScores, start: int, stop: int) -> None:
        file = self._output.file
        _, layers, hidden = self._dataset.shape
        if EXPERT_SCORES not in file:
            file.create_dataset(
                EXPERT_SCORES,
                shape=(0, layers, experts.experts, hidden),
                maxshape=(None, layers, experts.experts, hidden),
                chunks=(1, 1, 1, hidden),
                dtype=np.float32,
                shuffle=True,
                compression="gzip",
            )
        dataset = file[EXPERT_SCORES]
        dataset.resize(stop, axis=0)
        for (sample, layer, expert), scores in zip(experts.places.tolist(), experts.scores, strict=True):
            dataset.id.write_direct_chunk((start + sample, layer, expert, 0), _packed(scores))

    def _append_rest(self) -> None:
        if len(self._unwritten):
            whole = np.zeros(self._dataset.chunks, np.float32)
            whole[: len(self._unwritten)] = self._unwritten
            self._write_chunk(whole, self._dataset.shape[0] - len(self._unwritten))

    def _write_chunk(self, chunk: NDArray[np.float32], start: int) -> None:
        self._dataset.id.write_direct_chunk((start, 0, 0), _packed(chunk))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError) if error else nullcontext():  # the error that ends the block is the first
            try:
                if error is None:
                    self._output.do(self._append_rest)
            finally:
                self._output.close()


class ScoresReader:
    """Reads a scores file, ours or the published project's, in chunks; a context manager.

    Args:
        path: the file.

    Attributes:
        samples: number of samples N.
        layers: number of layers L.
        hidden: number of rows D per layer.
        experts: number of experts E whose scores it holds; 0 where it holds none.
        provenance: what the scores come from; None for published files.
        records: what the samples were.

    Raises:
        LokiError: if the file is missing, truncated, damaged, or holds no `dataset` of rank 3.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        require_file(path, "scores file", advice="check the path, or make it with `loki analyse`")
        with self._reading():
            self._file = h5py.File(path, "r")
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        with self._reading():
            self._dataset = scores_dataset(self._file, f"scores file {self.path}")
            self.samples, self.layers, self.hidden = (int(size) for size in self._dataset.shape)
            self._experts = expert_scores_dataset(self._file, (self.samples, self.layers, self.hidden))
            self.experts = self._experts.shape[2] if self._experts is not None else 0
            attributes = {name: self._file.attrs[name] for name in self._file.attrs}
            self.records = self._read_records()
        self.provenance = Provenance.from_attributes(attributes, origin=f"scores file {self.path}")

    def scores(self, start: int, stop: int) -> NDArray[np.float32]:
        """The scores of samples `start` to `stop`, `[stop - start, L, D]` float32.

        Raises:
            LokiError: if they are damaged on disk, or one is NaN or infinite; the text names sample and layer.
        """
        with self._reading(), np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
            block: NDArray[np.float32] = self._dataset[start:stop].astype(np.float32)
        check_finite(block, self.records.sample_ids[start:stop], origin=f"scores file {self.path}")
        return block

    def expert_scores(self, start: int, stop: int) -> ExpertScores:
        """The scores of the experts, of samples `start` to `stop`; the first of them is sample 0 in `places`.

        Raises:
            LokiError: see `scores`.
        """
        if self._experts is None:
            return ExpertScores.none(self.hidden)
        found: list[dict[int, NDArray[np.float32]]] = []
        for sample in range(start, stop):
            with self._reading():
                found.append({layer: self._experts[sample, layer] for layer in range(self.layers)})
        experts = ExpertScores.of(found)
        experts.check_finite(self.records.sample_ids[start:stop], origin=f"scores file {self.path}")
        return experts

    def mean(self) -> NDArray[np.float64]:
        """`[L, D]`; the mean score of every row over the samples.

        Raises:
            LokiError: if the file holds no sample.
        """
        if not self.samples:
            raise LokiError(f"scores file {self.path} holds no samples: make it again, from one question or more")
        total: NDArray[np.float64] = np.zeros((self.layers, self.hidden))
        for _, chunk in self.chunks():
            total += chunk.sum(axis=0, dtype=np.float64)
        return total / self.samples

    def chunks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All scores in order, as pairs of the first sample's index and `[n, L, D]`; memory does not grow with N.

        Raises:
            LokiError: see `scores`.
        """
        size = max(1, _READ_BYTES // (4 * self.layers * self.hidden))
        for start in range(0, self.samples, size):
            yield start, self.scores(start, min(start + size, self.samples))

    def _read_records(self) -> SampleRecords:
        count = self.samples
        names = [name for name in (*_TEXT_COLUMNS, *_NUMBER_COLUMNS) if name in self._file]
        found = {
            name: sample_column(self._file, name, count, text=name in _TEXT_COLUMNS, origin=f"scores file {self.path}")
            for name in names
        }
        columns: dict[str, Any] = {
            **{name: [""] * count for name in _TEXT_COLUMNS},
            **{name: np.full(count, _UNKNOWN[name], dtype) for name, dtype in _NUMBER_COLUMNS.items()},
            "sample_ids": [str(index) for index in range(count)],
        }
        for name, column in found.items():
            columns[name] = list(column.asstr()[:]) if name in _TEXT_COLUMNS else column[:]
        return SampleRecords(**columns)

    def _reading(self) -> AbstractContextManager[None]:
        advice = "analyse again, or copy it again"
        return reading("scores file", self.path, problem="is truncated or damaged", advice=advice)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def check_finite(scores: NDArray[np.float32], ids: Sequence[str], *, origin: str) -> None:
    """Check scores `[n, L, D]` of the samples `ids`.

    Raises:
        LokiError: if one is NaN or infinite; the text names sample and layer.
    """
    finite = np.isfinite(scores).all(axis=-1)
    if not finite.all():
        sample, layer = (int(index) for index in np.argwhere(~finite)[0])
        raise LokiError(
            f"{origin}: sample {ids[sample]}, layer {layer}: a score is NaN or infinite: "
            "analyse that sample again, in float32 if it was half precision"
        )


def _packed(chunk: NDArray[np.float32]) -> bytes:
    """The bytes of a chunk as HDF5 stores them behind the filters `shuffle` and `gzip`.

    HDF5's own filter takes five to six times as long, for files that are 11% smaller (64 samples of 30 x 576 scores)
    to 2% larger (32 of 32 x 4096); with `lzf` it takes twice to three times as long, for files up to 11% larger.

    Of a float32's four bytes only the highest, the exponent, repeats itself: it alone is compressed. The others are
    stored as they are. The stream's checksum tells damage on disk when it is read.
    """
    planes = np.ascontiguousarray(chunk.astype("<f4", copy=False).reshape(-1).view(np.uint8).reshape(-1, 4).T)
    stored = zlib.compressobj(0, zlib.DEFLATED, _ZLIB_WINDOW)
    compressed = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, _ZLIB_WINDOW, _ZLIB_MEMORY, zlib.Z_RLE)
    parts = [
        *(_ZLIB_HEADER, stored.compress(planes[:3].data), stored.flush(zlib.Z_FULL_FLUSH)),
        *(compressed.compress(planes[3].data), compressed.flush()),
        zlib.adler32(planes.data).to_bytes(4, "big"),
    ]
    return b"".join(parts)
