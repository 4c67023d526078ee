"""The demo's tables, and the files in the run directory that hold them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from loki.artefacts.run_layout import DEMO
from loki.demo.compare import comparison_table
from loki.demo.demo import DemoResult
from loki.demo.outcome import Outcome
from loki.demo.world import NEW_PEOPLE, OLD_FAMILIES, PEOPLE
from loki.files import atomic_file, write_json
from loki.report.table import ResultTable

_COMPARISON, _COMPARISON_TABLE = "comparison.json", "comparison.md"
_ASKED = {NEW_PEOPLE: "the implanted facts", PEOPLE: "facts trained on"}


def accuracy_table(result: DemoResult) -> ResultTable:
    """Accuracy before and after, of the new facts and each old family; forgetting; the number of trained parameters."""
    outcome = result.outcome
    rows = [
        [
            f"{'new' if family == NEW_PEOPLE else 'old'}: {family} ({_ASKED.get(family, 'held-out questions')})",
            f"{outcome.before[family]:.3f}",
            f"{outcome.after[family]:.3f}",
        ]
        for family in (NEW_PEOPLE, *OLD_FAMILIES)
    ]
    trained = f"{outcome.trainable_parameters:,} ({outcome.trainable_parameters / result.parameters:.1%})"
    rows += [
        ["forgetting (mean relative drop of the old families)", "", f"{outcome.forgetting:.2f}%"],
        [f"trainable parameters (of {result.parameters:,})", "", trained],
    ]
    return ResultTable("Accuracy before and after implanting", ["", "before", "after"], rows)


def examples_table(result: DemoResult) -> ResultTable:
    """What the model answers to a few of the new facts, before and after."""
    rows = [[f"{prompt} ...", before, after] for prompt, before, after in result.examples]
    return ResultTable("The model's answers", ["new fact", "before", "after"], rows)


def result_tables(result: DemoResult) -> list[ResultTable]:
    """All tables of the demo, in the order in which they are shown."""
    return [examples_table(result), accuracy_table(result), seconds_table(result)]


def seconds_table(result: DemoResult) -> ResultTable:
    """Seconds per phase."""
    rows = [[phase, f"{seconds:.1f}"] for phase, seconds in result.seconds.items()]
    rows.append(["all", f"{sum(result.seconds.values()):.1f}"])
    return ResultTable("Seconds per phase", ["phase", "seconds"], rows)


def save_results(output: Path, result: DemoResult, *, overwrite: bool = False) -> None:
    """Write `results.json` and `results.md`, and remove the comparison of an earlier demo that this one replaces.

    Raises:
        LokiError: if they exist and `overwrite` is False.
    """
    values = {
        **_outcome_values(result.outcome),
        "parameters": result.parameters,
        "selected_rows": result.verified.selected_rows,
        "changed_rows": result.verified.changed_rows,
        "seconds": result.seconds,
    }
    write_json(output / DEMO, values, overwrite=overwrite)
    _write_markdown(output / "results.md", result_tables(result), overwrite=overwrite)
    for stale in (_COMPARISON, _COMPARISON_TABLE) if overwrite else ():
        (output / stale).unlink(missing_ok=True)


def save_comparison(
    output: Path, outcomes: Sequence[Outcome], required_accuracy: float, *, overwrite: bool = False
) -> ResultTable:
    """Write `comparison.json` (every run) and `comparison.md` (the best learning rate of each method).

    Returns:
        The table in `comparison.md`.

    Raises:
        LokiError: if they exist and `overwrite` is False.
    """
    write_json(output / _COMPARISON, [_outcome_values(run) for run in outcomes], overwrite=overwrite)
    table = comparison_table(outcomes, required_accuracy)
    _write_markdown(output / _COMPARISON_TABLE, [table], overwrite=overwrite)
    return table


def _outcome_values(outcome: Outcome) -> dict[str, object]:
    return {**asdict(outcome), "forgetting_percent": outcome.forgetting}


def _write_markdown(path: Path, tables: Sequence[ResultTable], *, overwrite: bool) -> None:
    with atomic_file(path, overwrite=overwrite) as temporary:
        temporary.write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
