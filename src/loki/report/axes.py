"""An empty picture, as all of them begin."""

from typing import Any

from matplotlib.figure import Figure


def new_axes(x: str, y: str) -> tuple[Figure, Any]:
    """A figure with one pair of axes, labelled; not tied to any screen."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes
