"""PASS, FAIL or INCONCLUSIVE: what intervals say about the damage that is accepted."""

import math
from dataclasses import dataclass
from enum import StrEnum

from loki.errors import require
from loki.evaluation.forgetting import Forgetting
from loki.evaluation.statistics import Interval, items_to_settle, items_without_flips


class Outcome(StrEnum):
    """What a comparison came to."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}


@dataclass(frozen=True)
class Limits:
    """The damage that is accepted.

    Attributes:
        max_drop: forgetting, in percent.
        max_kl: KL(base || new) per token, in nats.

    Raises:
        LokiError: if one is below 0 or no number.
    """

    max_drop: float = 1.0
    max_kl: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_drop", "max_kl"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "0 or above")


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to, and why.

    Attributes:
        outcome: PASS if all that was measured is within its limit with confidence, FAIL if something is beyond it with
            confidence, else INCONCLUSIVE.
        reasons: one line for every limit that was looked at.
    """

    outcome: Outcome
    reasons: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT_CODES[self.outcome]


@dataclass(frozen=True)
class KlMeasurement:
    """KL on one text source.

    Attributes:
        name: of the source.
        kl: per token, in nats.
        interval: of `kl`.
        windows: how many windows it was measured on.
        tokens: how many tokens they hold.
    """

    name: str
    kl: float
    interval: Interval
    windows: int
    tokens: int


@dataclass(frozen=True)
class TaskSize:
    """How much a task can say.

    Attributes:
        items: how many items it has.
        base: mean score of the base.
        flipped: how many items have another score with the new model.
    """

    items: int
    base: float
    flipped: int


def judge(
    limits: Limits, kls: list[KlMeasurement], forgetting: Forgetting | None, sizes: dict[str, TaskSize]
) -> Verdict:
    """The verdict on one model.

    Args:
        limits: the damage that is accepted.
        kls: KL on every text source.
        forgetting: over the tasks; None if none were run.
        sizes: of every task.
    """
    judged = [_judge_kl(limits, measured) for measured in kls]
    if forgetting is not None:
        judged.append(_judge_forgetting(limits, forgetting, sizes))
    if not judged:
        why = "nothing was measured that a limit is set for: give --tasks, or models that share a tokenizer"
        judged = [(Outcome.INCONCLUSIVE, why)]
    outcomes = {outcome for outcome, _ in judged}
    worst = next(one for one in (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS) if one in outcomes)
    return Verdict(worst, tuple(f"{outcome}: {reason}" for outcome, reason in judged))


def place(value: float, interval: Interval, limit: float) -> Outcome:
    """Where a measurement lies: all of its interval within the limit, all beyond it, or neither."""
    if not math.isfinite(value) or interval.low > limit:
        return Outcome.FAIL
    return Outcome.PASS if interval.high <= limit else Outcome.INCONCLUSIVE


def _judge_kl(limits: Limits, found: KlMeasurement) -> tuple[Outcome, str]:
    outcome = place(found.kl, found.interval, limits.max_kl)
    line = f"KL on {found.name} {found.kl:.4g} nats per token {span(found.interval)}, limit {limits.max_kl:g}"
    if outcome is Outcome.INCONCLUSIVE:
        bound = found.interval.high if found.kl <= limits.max_kl else found.interval.low
        needed = items_to_settle(found.tokens, found.kl, bound, limits.max_kl)
        line += f"; about {needed:,} tokens of such text would settle it" if needed else "; give more text"
    return outcome, line


def _judge_forgetting(limits: Limits, found: Forgetting, sizes: dict[str, TaskSize]) -> tuple[Outcome, str]:
    if found.percent is None or found.interval is None:
        return Outcome.INCONCLUSIVE, "forgetting cannot be said: the base knows nothing of any task"
    outcome = place(found.percent, found.interval, limits.max_drop)
    line = f"forgetting {found.percent:.2f}% {span(found.interval, '%', '.2f')}, limit {limits.max_drop:g}%"
    if outcome is Outcome.INCONCLUSIVE:
        said = [sizes[name] for name, task in found.tasks.items() if task.percent is not None]
        bound = found.interval.high if found.percent <= limits.max_drop else found.interval.low
        needed = items_to_settle(min(size.items for size in said), found.percent, bound, limits.max_drop)
        if not any(size.flipped for size in said) and limits.max_drop > 0:
            needed = max(items_without_flips(limits.max_drop / 100 * size.base) for size in said)
        line += f"; about {needed:,} items per task would settle it" if needed else "; evaluate more items"
    return outcome, line


def span(interval: Interval, unit: str = "", form: str = ".4g") -> str:
    """An interval as text: `[0.01, 0.02]`."""
    return f"[{interval.low:{form}}{unit}, {interval.high:{form}}{unit}]"
