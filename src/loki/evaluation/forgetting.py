"""Forgetting: how much of the old knowledge is lost."""

from collections.abc import Mapping

from loki.errors import LokiError


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
