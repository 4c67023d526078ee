"""Selection the slow and obvious way: Python loops and exact fractions."""

from fractions import Fraction

import numpy as np

from loki.artefacts.positions import Positions


def naive_layer_balanced(scores: np.ndarray, k: int, exclude: Positions | None = None) -> Positions:
    """The issue's rule, literally, for scores [N, L, D]."""
    layers, hidden = scores.shape[1:]
    exclude = exclude or [[] for _ in range(layers)]
    positions = []
    for layer in range(layers):
        rows = [row for row in range(hidden) if row not in exclude[layer]]
        positions.append(_most_frequent({row: scores[:, layer, row] for row in rows}, k))
    return positions


def naive_global(scores: np.ndarray, total: int, highest: bool, exclude: Positions | None = None) -> Positions:
    """The same rule with all rows of all layers in one group."""
    layers, hidden = scores.shape[1:]
    exclude = exclude or [[] for _ in range(layers)]
    sign = -1 if highest else 1
    columns = {
        layer * hidden + row: sign * scores[:, layer, row]
        for layer in range(layers)
        for row in range(hidden)
        if row not in exclude[layer]
    }
    chosen = _most_frequent(columns, total)
    return [[index % hidden for index in chosen if index // hidden == layer] for layer in range(layers)]


def naive_mean(scores: np.ndarray, k: int) -> Positions:
    """The k rows of every layer with the lowest sum over the samples, in exact fractions; then the lower index."""
    sums = [[sum(map(Fraction, column.tolist())) for column in layer.T] for layer in scores.transpose(1, 0, 2)]
    return [sorted(sorted(range(len(layer)), key=lambda row: (layer[row], row))[:k]) for layer in sums]


def _most_frequent(columns: dict[int, np.ndarray], k: int) -> list[int]:
    counts = dict.fromkeys(columns, 0)
    samples = len(next(iter(columns.values())))
    for sample in range(samples):
        lowest = sorted(columns, key=lambda row: (columns[row][sample], row))[:k]
        for row in lowest:
            counts[row] += 1
    sums = {row: sum(Fraction(float(score)) for score in column) for row, column in columns.items()}
    return sorted(sorted(columns, key=lambda row: (-counts[row], sums[row], row))[:k])
