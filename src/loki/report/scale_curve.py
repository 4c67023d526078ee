"""A scale sweep as a table and as a picture."""

from pathlib import Path

from loki.evaluation.scale_sweep import ScaleSweep
from loki.files import atomic_file
from loki.report.table import ResultTable


def scale_table(sweep: ScaleSweep) -> ResultTable:
    """Accuracy and damage by scale."""
    rows = [
        [f"{point.scale:g}", f"{point.accuracy:.3f}", f"{point.loss:.3f}", f"{point.kl:.4g}"] for point in sweep.points
    ]
    return ResultTable("Scale of what was trained", ["scale", "answers right", "loss", "KL per token"], rows)


def plot_scales(sweep: ScaleSweep, path: Path, *, overwrite: bool = False) -> None:
    """Draw accuracy over damage as PNG, the chosen scale encircled.

    Raises:
        LokiError: if `path` exists and `overwrite` is False.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([point.kl for point in sweep.points], [point.accuracy for point in sweep.points], marker="o")
    for point in sweep.points:
        axes.annotate(f"{point.scale:g}", (point.kl, point.accuracy), textcoords="offset points", xytext=(4, -10))
    axes.plot(sweep.chosen.kl, sweep.chosen.accuracy, marker="o", markersize=12, fillstyle="none", color="black")
    axes.set(xlabel="KL(base || model) on general text, nats per token", ylabel="new answers exactly right")
    axes.grid(alpha=0.3)
    with atomic_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
