"""The loss curve of a training."""

from pathlib import Path
from typing import Any

from loki.files import atomic_file


def plot_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Draw training loss, and evaluation loss where there is one, over the steps, as PNG.

    Args:
        log: `trainer.state.log_history`.
        path: file to write; an old one is replaced.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_file(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
