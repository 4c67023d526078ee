"""What a scores file holds: statistics by layer, extreme rows, and how far parts of the data select the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loki.artefacts.positions import Positions
from loki.artefacts.provenance import Provenance
from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from loki.selection.accumulators import RowCounter
from loki.selection.overlap import overlap
from loki.selection.quota import rows_for_quota


@dataclass(frozen=True)
class LayerStatistics:
    """All scores of one layer, over samples and rows.

    Attributes:
        mean: of the scores.
        deviation: standard deviation.
        lowest: smallest score.
        highest: largest score.
        negative: fraction of the scores below 0.
    """

    mean: float
    deviation: float
    lowest: float
    highest: float
    negative: float


@dataclass(frozen=True)
class Row:
    """One row of a layer's `down_proj.weight`, with its mean score over the samples."""

    layer: int
    index: int
    mean: float


@dataclass(frozen=True)
class LayerExperts:
    """The experts of one layer, over samples.

    Attributes:
        layer: which.
        experts: number of them.
        used: number of those that have a score on any sample.
        busiest: the one that has scores on the most samples.
        busiest_samples: fraction of the samples on which it has.
        largest: the one with the largest sum of absolute scores.
        largest_part: its part of that sum over all experts.
    """

    layer: int
    experts: int
    used: int
    busiest: int
    busiest_samples: float
    largest: int
    largest_part: float


@dataclass(frozen=True)
class Inspection:
    """What `inspect_scores` finds.

    Attributes:
        samples: number of samples N.
        layers: number of layers L.
        hidden: number of rows D per layer.
        provenance: what the scores come from; None for files of the published project.
        completeness: median over the samples; NaN where the file does not say.
        statistics: one entry per layer.
        experts: one entry per layer with scores per expert.
        most_important: the rows with the highest mean scores of the model, highest first.
        least_important: the rows with the lowest mean scores, lowest first.
        quota: percentage of the selections that are compared.
        halves: overlap of the layer-balanced selections on every other sample and on the rest; None for one sample.
        subjects: overlap of the selection on one subject with that on all samples, by subject, and the number of its
            samples; empty where the file names no subjects.
        pairs: smallest and mean overlap of the selections on two subjects; None for fewer than two.
    """

    samples: int
    layers: int
    hidden: int
    provenance: Provenance | None
    completeness: float
    statistics: list[LayerStatistics]
    experts: list[LayerExperts]
    most_important: list[Row]
    least_important: list[Row]
    quota: float
    halves: float | None
    subjects: dict[str, tuple[float, int]]
    pairs: tuple[float, float] | None


def inspect_scores(path: Path, *, quota: float = 10.0, rows: int = 10) -> Inspection:
    """Look through a scores file, in memory that does not grow with the number of samples.

    Args:
        path: the scores file, ours or the published project's.
        quota: percentage of the rows in the selections that are compared.
        rows: how many of the most and least important rows to name, 0 or more.

    Raises:
        LokiError: if the file cannot be used, holds no samples, or a NaN or infinite score, or a number is out of
            range.
    """
    if rows < 0:
        raise LokiError(f"--rows {rows} makes no sense: give a number of rows, or 0 for none")
    with ScoresReader(path) as reader:
        if not reader.samples:
            raise LokiError(f"scores file {path} holds no samples: analyse again")
        k = rows_for_quota(quota, reader.hidden)
        sums: NDArray[np.float64] = np.zeros((reader.layers, reader.hidden))
        squares, negative = np.zeros(reader.layers), np.zeros(reader.layers)
        lowest, highest = np.full(reader.layers, np.inf), np.full(reader.layers, -np.inf)
        whole = RowCounter(reader.layers, reader.hidden, k)
        halves = [RowCounter(reader.layers, reader.hidden, k) for _ in range(2)]
        for start, scores in reader.chunks():
            whole.update(scores)
            for half, counter in enumerate(halves):
                counter.update(scores[(start + half) % 2 :: 2])
            exact = scores.astype(np.float64)
            sums += exact.sum(axis=0)
            squares += np.square(exact).sum(axis=(0, 2))
            negative += (scores < 0).sum(axis=(0, 2))
            lowest = np.minimum(lowest, scores.min(axis=(0, 2)))
            highest = np.maximum(highest, scores.max(axis=(0, 2)))
        count = reader.samples * reader.hidden
        means = sums.sum(axis=1) / count
        deviations = np.sqrt(np.maximum(squares / count - means**2, 0.0))
        ranked = np.argsort(sums, axis=None, kind="stable")
        everything = whole.positions()
        selections = _selections(reader, k)
        of_pairs = [overlap(*pair) for pair in combinations([chosen for chosen, _ in selections.values()], 2)]
        return Inspection(
            samples=reader.samples,
            layers=reader.layers,
            hidden=reader.hidden,
            provenance=reader.provenance,
            completeness=float(np.median(reader.records.completeness)),
            statistics=[
                LayerStatistics(*(float(value) for value in layer))
                for layer in zip(means, deviations, lowest, highest, negative / count, strict=True)
            ],
            experts=_experts(reader),
            most_important=_rows(ranked[::-1][:rows], sums / reader.samples),
            least_important=_rows(ranked[:rows], sums / reader.samples),
            quota=quota,
            halves=overlap(halves[0].positions(), halves[1].positions()) if reader.samples > 1 else None,
            subjects={name: (overlap(chosen, everything), count) for name, (chosen, count) in selections.items()},
            pairs=(min(of_pairs), float(np.mean(of_pairs))) if of_pairs else None,
        )


def _rows(indices: Sequence[int] | NDArray[np.int64], means: NDArray[np.float64]) -> list[Row]:
    return [
        Row(layer=int(index) // means.shape[1], index=int(index) % means.shape[1], mean=float(means.flat[index]))
        for index in indices
    ]


def _experts(reader: ScoresReader) -> list[LayerExperts]:
    """How often the experts of every layer have scores, and how large."""
    samples: NDArray[np.int64] = np.zeros((reader.layers, reader.experts), np.int64)
    sums = np.zeros((reader.layers, reader.experts))
    for sample in range(reader.samples if reader.experts else 0):
        found = reader.expert_scores(sample, sample + 1)
        _, layers, experts = found.places.T
        samples[layers, experts] += 1
        sums[layers, experts] += np.abs(found.scores).sum(axis=1, dtype=np.float64)
    return [
        LayerExperts(
            layer=layer,
            experts=reader.experts,
            used=int((samples[layer] > 0).sum()),
            busiest=int(samples[layer].argmax()),
            busiest_samples=float(samples[layer].max()) / reader.samples,
            largest=int(sums[layer].argmax()),
            largest_part=float(sums[layer].max() / sums[layer].sum()),
        )
        for layer in np.flatnonzero(samples.any(axis=1)).tolist()
    ]


def _selections(reader: ScoresReader, k: int) -> dict[str, tuple[Positions, int]]:
    """The selection on every subject, and its number of samples; one set of counts is in memory at a time."""
    names = np.array(reader.records.subjects, dtype=object)
    result = {}
    for subject in sorted({name for name in reader.records.subjects if name}):
        members = np.flatnonzero(names == subject)
        counter = RowCounter(reader.layers, reader.hidden, k)
        for run in np.split(members, np.flatnonzero(np.diff(members) > 1) + 1):
            for start in range(int(run[0]), int(run[-1]) + 1, _AT_ONCE):
                counter.update(reader.scores(start, min(start + _AT_ONCE, int(run[-1]) + 1)))
        result[subject] = (counter.positions(), len(members))
    return result


_AT_ONCE = 32  # samples
