"""Forgetting: how much of the old knowledge is lost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loki.errors import LokiError
from loki.evaluation.statistics import (
    RESAMPLES,
    Interval,
    Values,
    above_chance,
    bootstrap,
    is_binary,
    percentiles,
    unseen_rate,
)

NOTHING_RIGHT = "the base scores 0: nothing to forget"
AT_CHANCE = "the base is at chance: nothing to forget"
LOWER_IS_BETTER = "not a score of which more is better"


@dataclass(frozen=True)
class TaskScores:
    """Both models' scores on the items of one task.

    Attributes:
        base: `[N]`; of the model before, the more the better.
        new: `[N]`; of the model after, of the same items.
        chance: the mean score of guessing; 0 where guessing is hopeless.
        higher_is_better: whether more is better.
    """

    base: Values
    new: Values
    chance: float = 0.0
    higher_is_better: bool = True


@dataclass(frozen=True)
class TaskForgetting:
    """Relative drop of one task's score.

    Attributes:
        percent: `100 * (before - after) / before`; None where it cannot be said.
        interval: of `percent`.
        reason: why it cannot be said; empty if it can.
    """

    percent: float | None
    interval: Interval | None
    reason: str = ""


@dataclass(frozen=True)
class Forgetting:
    """Mean relative drop over tasks.

    Attributes:
        percent: mean over the tasks of which it can be said; None if there are none.
        interval: of `percent`.
        tasks: every task by name.
    """

    percent: float | None
    interval: Interval | None
    tasks: dict[str, TaskForgetting]


def forgetting_percent(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Mean relative drop of the families' accuracy, in percent: `100 * mean((before - after) / before)`.

    Every family weighs the same. A negative value means that the families got better on average.

    Args:
        before: accuracy by family before implanting.
        after: accuracy of the same families afterwards.

    Raises:
        LokiError: if the families differ, there are none, or one had no right answer to begin with.
    """
    if before.keys() != after.keys() or not before:
        raise LokiError(f"families before {sorted(before)} and after {sorted(after)} must be the same, and some")
    unknown = [family for family, accuracy in before.items() if accuracy <= 0]
    if unknown:
        raise LokiError(f"nothing was known about {unknown[0]} before, so nothing can be forgotten: leave it out")
    return 100 * sum((before[family] - after[family]) / before[family] for family in before) / len(before)


def forgetting(tasks: Mapping[str, TaskScores], *, identical: bool = False, seed: int = 0) -> Forgetting:
    """The paper's forgetting with its interval: `100/N * sum((S_base - S_new) / S_base)` over N tasks.

    A task whose base score is 0 or at chance is left out, with the reason: there is nothing to forget, and the
    quotient would be noise. Intervals come from resampling the items of every task (paired bootstrap). A task without a
    flip adds what an exact binomial interval leaves possible.

    Args:
        tasks: both models' scores by task.
        identical: whether both models are known to be the same one, so that nothing is left to chance.
        seed: of the resampling.
    """
    found: dict[str, TaskForgetting] = {}
    distributions, margins = [], []
    for index, (name, scores) in enumerate(tasks.items()):
        if reason := _cannot_be_said(scores):
            found[name] = TaskForgetting(None, None, reason)
            continue
        percent = float(_relative_drop(scores.base, scores.new, axis=-1))
        if identical:
            found[name] = TaskForgetting(percent, Interval(percent, percent))
            distributions.append(np.full(RESAMPLES, percent))
            continue
        interval, distribution = bootstrap(_relative_drop, scores.base, scores.new, seed=[seed, index])
        if math.isnan(interval.low):  # a resample without a right answer
            interval = Interval(-math.inf, math.inf)
        elif not (scores.base != scores.new).any() and is_binary(scores.base):
            margin = 100 * unseen_rate(len(scores.base)) / float(scores.base.mean())
            margins.append(margin)
            interval = Interval(-margin, margin)
        found[name] = TaskForgetting(percent, interval)
        distributions.append(distribution)
    if not distributions:
        return Forgetting(None, None, found)
    said = [task.percent for task in found.values() if task.percent is not None]
    percent = sum(said) / len(said)
    return Forgetting(percent, _overall(percent, distributions, margins), found)


def _overall(percent: float, distributions: list[Values], margins: list[float]) -> Interval:
    mean = np.mean(distributions, axis=0)
    if not np.isfinite(mean).all():
        return Interval(-math.inf, math.inf)
    inner = percentiles(mean)
    margin = math.hypot(*margins) / len(distributions)  # errors of independent tasks
    return Interval(
        percent - math.hypot(percent - inner.low, margin), percent + math.hypot(inner.high - percent, margin)
    )


def _relative_drop(base: Values, new: Values, axis: int) -> Values:
    before, after = base.mean(axis), new.mean(axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        drop: Values = 100 * (before - after) / before
    return drop


def _cannot_be_said(scores: TaskScores) -> str:
    if not scores.higher_is_better:
        return LOWER_IS_BETTER
    if scores.base.sum() <= 0:
        return NOTHING_RIGHT
    if not above_chance(float(scores.base.sum()), len(scores.base), scores.chance):
        return AT_CHANCE
    return ""
