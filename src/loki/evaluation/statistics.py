"""Statistics of two models on the same items: intervals, tests, and what a number of items can show.

Resampling and tests are SciPy's. All intervals are two-sided and hold 95% (`CONFIDENCE`).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from loki.errors import LokiError

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 5000
_ALPHA = 1 - CONFIDENCE
_BATCH_VALUES = 2**22
_FEWEST_RUNS = 6
# So many flips, all in one direction, are the fewest that an exact McNemar test calls significant: 2 * 0.5**6 < 0.05.
_FEWEST_FLIPS = math.ceil(1 - math.log2(_ALPHA))

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value with 95% confidence.

    Attributes:
        low: lower end.
        high: upper end.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Flips:
    """Items that one model has right and the other wrong.

    Attributes:
        lost: indices of those that only the base has right.
        gained: indices of those that only the new model has right.
        p_value: of the exact McNemar test, two-sided; 1 where nothing flipped.
    """

    lost: list[int]
    gained: list[int]
    p_value: float


def bootstrap(statistic: Callable[..., Any], *samples: Values, seed: int | list[int]) -> tuple[Interval, Values]:
    """Interval of `statistic(*samples, axis=-1)`, resampling the items of all samples together (paired).

    Args:
        statistic: of arrays whose last axis holds the items; vectorised over the others.
        samples: `[N]` each; the same item at the same index.
        seed: of the resampling.

    Returns:
        The interval, and the statistic of every resample.

    Raises:
        LokiError: if there is no item.
    """
    count = len(samples[0])
    if not count:
        raise LokiError("there is no item to make an interval of: give at least one")
    if count == 1:  # nothing can be said about others
        return Interval(-math.inf, math.inf), np.full(RESAMPLES, statistic(*samples, axis=-1))
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # where all items are alike, see below
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            batch=max(1, _BATCH_VALUES // count),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    interval = Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))
    distribution: Values = found.bootstrap_distribution
    return interval, distribution


def percentiles(distribution: Values) -> Interval:
    """The middle 95% of resampled values."""
    low, high = np.quantile(distribution, [_ALPHA / 2, 1 - _ALPHA / 2])
    return Interval(float(low), float(high))


def difference_interval(base: Values, new: Values, *, seed: int = 0) -> Interval:
    """Interval of `mean(new - base)` over items: paired bootstrap.

    Where no item differs there is nothing to resample. If all are right or wrong (1 or 0), the interval is then what an
    exact binomial interval leaves possible for the share of items that differ; else it is the difference, 0, alone.

    Raises:
        LokiError: if there is no item.
    """
    difference = new - base
    if len(difference) and not difference.any() and is_binary(base):
        most = unseen_rate(len(base))
        return Interval(-most, most)
    return bootstrap(np.mean, difference, seed=seed)[0]


def ratio_interval(sums: Values, counts: Values, *, neighbours: bool = False, logarithmic: bool = False) -> Interval:
    """Interval of `sum(sums) / sum(counts)` over blocks, such as the KL per token over windows of text.

    By the variance of the linearised ratio and Student's t. Windows that stand side by side in one text are of one
    topic, and their values alike: taken for independent, they promise too much of other text. The variance is then
    that over runs of 1, 2, 4, ... neighbours, as long as there are six runs, and the widest interval counts (the
    blocking method, Flyvbjerg and Petersen 1989, doi:10.1063/1.457480).

    Args:
        sums: of every block, in the order of the text.
        counts: of every block.
        neighbours: whether blocks that follow each other depend on each other.
        logarithmic: on the scale of logarithms, for what is above 0 and spreads over orders of magnitude.

    Raises:
        LokiError: if there is no block.
    """
    if not len(sums):
        raise LokiError("there is no text to make an interval of: give at least one")
    value, widths, size = float(sums.sum() / counts.sum()), [], 1
    while size == 1 or (neighbours and len(sums) // size >= _FEWEST_RUNS):
        widths.append(_half_width(_runs(sums, size), _runs(counts, size)))
        size *= 2
    width = max(widths)
    if not (logarithmic and value > 0 and math.isfinite(width)):
        return Interval(value - width, value + width)
    return Interval(value * math.exp(-width / value), value * math.exp(width / value))


def _runs(values: Values, size: int) -> Values:
    """Sums over runs of about `size` neighbours."""
    starts = np.linspace(0, len(values), len(values) // size + 1).astype(np.int64)[:-1]
    found: Values = np.add.reduceat(values, starts)
    return found


def _half_width(sums: Values, counts: Values) -> float:
    """Half the interval of a ratio over independent blocks; infinite where there is one, which shows no variance."""
    blocks = len(sums)
    if blocks == 1:
        return math.inf
    rest = sums - sums.sum() / counts.sum() * counts
    error = math.sqrt(float(rest @ rest) * blocks / (blocks - 1)) / float(counts.sum())
    return error * float(stats.t.ppf(1 - _ALPHA / 2, blocks - 1))


def flips(base: Values, new: Values) -> Flips:
    """The items (1 right, 0 wrong) on which two models differ, with the exact McNemar test."""
    lost, gained = np.flatnonzero(base > new).tolist(), np.flatnonzero(new > base).tolist()
    count = len(lost) + len(gained)
    p_value = float(stats.binomtest(len(gained), count, 0.5).pvalue) if count else 1.0
    return Flips(lost, gained, p_value)


def least_detectable_change(items: int, flipped: int) -> float:
    """The least change of accuracy that so many items would show with a power of 80%, at a level of 5%.

    By the normal approximation of the McNemar test, at the observed share of flips: `(z_a + z_b) sqrt(share / items)`;
    but no less than six flips in one direction, the fewest that the exact test calls significant.

    Args:
        items: how many both models answered.
        flipped: how many of them flipped, in either direction.
    """
    z = float(stats.norm.ppf(1 - _ALPHA / 2) + stats.norm.ppf(POWER))
    return max(z * math.sqrt(flipped) / items, min(1.0, _FEWEST_FLIPS / items))


def items_to_settle(items: int, estimate: float, bound: float, threshold: float) -> int | None:
    """How many items would move a bound of an interval to the estimate's side of a threshold, all else equal.

    Intervals shrink with the root of the number of items.

    Args:
        items: how many there are now.
        estimate: what was measured.
        bound: the end of its interval beyond the threshold.
        threshold: what it is compared with.

    Returns:
        The number; None where the estimate is on the threshold, or one item says nothing about others.
    """
    if estimate == threshold or not math.isfinite(bound):
        return None
    return max(items + 1, math.ceil(items * ((bound - estimate) / (threshold - estimate)) ** 2))


def unseen_rate(items: int) -> float:
    """The largest share of items that may differ although none of so many did (exact binomial, upper 97.5%)."""
    return float(1 - (_ALPHA / 2) ** (1 / items))


def items_without_flips(rate: float) -> int:
    """How many items without a flip it takes to hold the share of those that differ below `rate`."""
    return math.ceil(math.log(_ALPHA / 2) / math.log1p(-rate)) if rate < 1 else 1


def above_chance(right: float, items: int, chance: float) -> bool:
    """Whether so many right answers are more than guessing gives (exact binomial test, one-sided, at 5%)."""
    if chance <= 0:
        return right > 0
    return bool(stats.binomtest(round(right), items, chance, alternative="greater").pvalue < _ALPHA)


def is_binary(values: Values) -> bool:
    """Whether every item is right (1) or wrong (0)."""
    return bool(np.isin(values, (0.0, 1.0)).all())
