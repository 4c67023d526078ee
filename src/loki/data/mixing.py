"""Mixing several sources by their weights: the largest mixture in which no example comes twice."""

import random
from collections.abc import Sequence


def mixture(sources: Sequence[int], weights: Sequence[float | None], seed: int) -> list[int]:
    """Which examples make up the mixture.

    Weights are shares of the examples. As many are taken as can be without repeating any; of each source they are
    drawn evenly, and what is drawn depends on the seed and on the numbers of examples alone.

    Args:
        sources: of each example, the index of its source.
        weights: of each source; None takes all of every source.
        seed: of the draw.

    Returns:
        Indices of examples, ascending; at least one of every source.
    """
    if len(weights) < 2 or any(weight is None for weight in weights):
        return list(range(len(sources)))
    given = [float(weight or 0.0) for weight in weights]
    of_source: list[list[int]] = [[] for _ in weights]
    for index, source in enumerate(sources):
        of_source[source].append(index)
    scale = min(len(indices) / weight for indices, weight in zip(of_source, given, strict=True) if indices)
    chosen: list[int] = []
    for number, (indices, weight) in enumerate(zip(of_source, given, strict=True)):
        count = min(len(indices), max(1, round(scale * weight)))
        chosen += random.Random(f"{seed}/{number}").sample(indices, count)
    return sorted(chosen)
