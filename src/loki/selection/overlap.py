"""How much two selections have in common."""

from loki.artefacts.positions import Positions
from loki.errors import LokiError


def overlap(first: Positions, second: Positions) -> float:
    """Fraction of the smaller selection's rows that the other one holds too; 0 to 1.

    For two selections of the same quota this is the overlap that the paper reports (arXiv 2505.22120, 97.57% between a
    reduced set of questions and the whole of MMLU).

    Raises:
        LokiError: if they are for different numbers of layers, or one selects nothing.
    """
    if len(first) != len(second):
        raise LokiError(f"positions for {len(first)} and {len(second)} layers cannot be compared")
    smaller = min(sum(map(len, first)), sum(map(len, second)))
    if not smaller:
        raise LokiError("positions without any row cannot be compared")
    return sum(len(set(a) & set(b)) for a, b in zip(first, second, strict=True)) / smaller
