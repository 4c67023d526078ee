"""Pictures of scores and of what is selected from them; every function returns a matplotlib Figure."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from loki.artefacts.positions import Positions
from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from loki.report.axes import new_axes
from loki.selection.accumulators import RowCounter
from loki.selection.overlap import overlap
from loki.selection.quota import rows_for_quota
from loki.selection.strategy import By, Counting, Scope

_POINTS = 12  # of a stability curve
_QUANTILES = (0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999)


def extremes_figure(scores: Path, quota: float = 5.0) -> Figure:
    """Where the rows of the highest and the lowest scores of the whole model lie, per layer (the paper's Figure 2).

    Args:
        scores: scores file.
        quota: percentage of all rows of the model that counts as highest, and as lowest.
    """
    highest, lowest = (extreme_rows(scores, quota, highest=highest) for highest in (True, False))
    layers = np.arange(len(highest))
    figure, axes = new_axes("layer", "share of the layer's rows, %")
    hidden = _hidden(scores)
    for offset, label, positions in ((-0.2, "highest", highest), (0.2, "lowest", lowest)):
        shares = [100 * len(rows) / hidden for rows in positions]
        axes.bar(layers + offset, shares, 0.4, label=f"{label} {quota:g}% of the model")
    axes.legend()
    return figure


def extreme_rows(scores: Path, quota: float, *, highest: bool) -> Positions:
    """The rows of the whole model that are most often among a sample's highest, or lowest, scores."""
    with ScoresReader(scores) as reader:
        rows = rows_for_quota(quota, reader.layers * reader.hidden)
        counter = RowCounter(reader.layers, reader.hidden, rows, Scope.MODEL, Counting(highest=highest), By.SIGNED)
        for _, chunk in reader.chunks():
            counter.update(chunk)
    return counter.positions()


def distribution_figure(scores: Path) -> Figure:
    """Quantiles of the rows' mean scores, per layer, on an axis that is linear near 0 and logarithmic beyond."""
    means = mean_scores(scores)
    figure, axes = new_axes("layer", "mean score of a row")
    layers = np.arange(len(means))
    quantiles = np.quantile(means, _QUANTILES, axis=1)
    for low, high, shade in ((0, 6, 0.15), (1, 5, 0.3), (2, 4, 0.5)):
        label = f"{100 * _QUANTILES[low]:g}% to {100 * _QUANTILES[high]:g}% of the rows"
        axes.fill_between(layers, quantiles[low], quantiles[high], alpha=shade, color="tab:blue", label=label, lw=0)
    axes.plot(layers, quantiles[3], color="tab:blue", label="median")
    spread = float(np.abs(quantiles[[2, 4]]).max())
    if spread > 0:
        axes.set_yscale("symlog", linthresh=spread)
    axes.legend(fontsize="small")
    return figure


def mean_scores(scores: Path) -> NDArray[np.float64]:
    """`[L, D]`; the mean score of every row over the samples.

    Raises:
        LokiError: if the file cannot be read, or holds no sample.
    """
    with ScoresReader(scores) as reader:
        return reader.mean()


def overlap_figure(selections: Mapping[str, Positions]) -> Figure:
    """How much of each selection the others hold too: of subjects, definitions, quotas, or files.

    Args:
        selections: two or more, by name.

    Raises:
        LokiError: if there are fewer than two, or they are for different models.
    """
    if len(selections) < 2:
        raise LokiError("an overlap needs two selections or more: name more positions files")
    names = list(selections)
    values = np.array([[overlap(selections[first], selections[second]) for second in names] for first in names])
    figure, axes = new_axes("", "")
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.grid(visible=False)
    if len(names) <= 12:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value < 0.6 else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize="small")
    figure.colorbar(image, label="overlap")
    return figure


def subject_selections(scores: Path, quota: float) -> dict[str, Positions]:
    """The layer-balanced selection on every subject's samples.

    Raises:
        LokiError: if the file names fewer than two subjects.
    """
    with ScoresReader(scores) as reader:
        subjects = np.array(reader.records.subjects)
        names = [name for name in dict.fromkeys(subjects.tolist()) if name]
        if len(names) < 2:
            raise LokiError(f"scores file {scores} names {len(names)} subjects: an overlap needs two or more")
        rows = rows_for_quota(quota, reader.hidden)
        counters = {name: RowCounter(reader.layers, reader.hidden, rows) for name in names}
        for start, chunk in reader.chunks():
            for name, counter in counters.items():
                counter.update(chunk[subjects[start : start + len(chunk)] == name])
    return {name: counter.positions() for name, counter in counters.items()}


def stability_figure(scores: Path, quota: float = 10.0) -> Figure:
    """How far the layer-balanced selection on the first samples agrees with that on all, by their number."""
    with ScoresReader(scores) as reader:
        if reader.samples < 2:
            raise LokiError(f"scores file {scores} holds {reader.samples} samples: stability needs 2 or more")
        marks = np.unique(np.geomspace(1, reader.samples, _POINTS).round().astype(int)).tolist()
        counter = RowCounter(reader.layers, reader.hidden, rows_for_quota(quota, reader.hidden))
        found: list[Positions] = []
        done = 0
        for mark in marks:
            counter.update(reader.scores(done, mark))
            done = mark
            found.append(counter.positions())
    figure, axes = new_axes("samples", f"overlap with all samples, quota {quota:g}%")
    axes.plot(marks, [overlap(positions, found[-1]) for positions in found], marker=".")
    axes.set_xscale("log")
    axes.set_ylim(top=1.02)
    return figure


def _hidden(scores: Path) -> int:
    with ScoresReader(scores) as reader:
        return reader.hidden
