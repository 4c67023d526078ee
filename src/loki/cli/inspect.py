"""`loki inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loki.cli.app import app, console, say

if TYPE_CHECKING:
    from rich.table import Table

    from loki.analysis.inspect_scores import Inspection


@app.command()
def inspect(
    scores: Annotated[Path, typer.Argument(help="Scores file made by `loki analyse`.", show_default=False)],
    quota: Annotated[float, typer.Option("--quota", help="Percentage of the rows in the compared selections.")] = 10.0,
    rows: Annotated[int, typer.Option("--rows", help="How many of the most and least important rows to list.")] = 10,
) -> None:
    """Show what a scores file holds: origin, statistics by layer, extreme rows, agreement between parts of the data.

    Example:
        loki inspect scores.h5 --quota 10
    """
    from loki.analysis.inspect_scores import inspect_scores

    found = inspect_scores(scores, quota=quota, rows=rows)
    say(
        f"{scores}: {found.samples} samples, {found.layers} layers, {found.hidden} rows per layer",
        samples=found.samples,
        layers=found.layers,
        hidden=found.hidden,
        completeness=found.completeness,
    )
    tables = [_origin(found), _layers(found), _extremes(found), _agreement(found)]
    if found.experts:
        tables.insert(2, _experts(found))
    for table in tables:
        console.print(table)


def _origin(found: "Inspection") -> "Table":
    table = _table("Origin", "", "")
    if found.provenance is None:
        table.add_row("unknown", "a file of the published project")
        return table
    for name, value in vars(found.provenance).items():
        if value in ("", {}):
            continue
        shown = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else value
        table.add_row(name.replace("_", " "), str(shown))
    table.add_row("completeness (median)", f"{found.completeness:.3g}")
    return table


def _layers(found: "Inspection") -> "Table":
    table = _table("Scores by layer", "layer", "mean", "deviation", "lowest", "highest", "negative")
    for layer, statistics in enumerate(found.statistics):
        numbers = (statistics.mean, statistics.deviation, statistics.lowest, statistics.highest)
        table.add_row(str(layer), *(f"{number:.3g}" for number in numbers), f"{statistics.negative:.1%}")
    return table


def _experts(found: "Inspection") -> "Table":
    table = _table("Experts by layer", "layer", "used", "on most samples", "largest scores")
    for own in found.experts:
        table.add_row(
            str(own.layer),
            f"{own.used} of {own.experts}",
            f"expert {own.busiest}: {own.busiest_samples:.1%} of the samples",
            f"expert {own.largest}: {own.largest_part:.1%} of their sum",
        )
    return table


def _extremes(found: "Inspection") -> "Table":
    table = _table("Rows by mean score", "most important", "mean", "least important", "mean")
    for most, least in zip(found.most_important, found.least_important, strict=True):
        table.add_row(
            f"layer {most.layer}, row {most.index}",
            f"{most.mean:.3g}",
            f"layer {least.layer}, row {least.index}",
            f"{least.mean:.3g}",
        )
    return table


def _agreement(found: "Inspection") -> "Table":
    table = _table(f"Overlap of layer-balanced selections, quota {found.quota:g}%", "", "samples", "overlap")
    if found.halves is not None:
        table.add_row("every other sample, and the rest", str(found.samples), f"{found.halves:.1%}")
    for subject, (overlap, samples) in found.subjects.items():
        table.add_row(f"{subject}, and all", str(samples), f"{overlap:.1%}")
    if found.pairs is not None:
        table.add_row("any two subjects, smallest", "", f"{found.pairs[0]:.1%}")
        table.add_row("any two subjects, mean", "", f"{found.pairs[1]:.1%}")
    return table


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
