"""Tables of a comparison, for the terminal, Markdown, LaTeX and the report."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loki.evaluation.compare import Comparison, TaskComparison
from loki.evaluation.statistics import Interval
from loki.evaluation.verdict import span
from loki.report.table import ResultTable

Row = tuple[str, str, list[str]]  # what, the base's value, and every new model's
_PROMPT_SHOWN = 160


def comparison_tables(comparisons: Sequence[Comparison]) -> list[ResultTable]:
    """One table of all that was measured: the base, and beside it every new model.

    Args:
        comparisons: of one base with one or more models.
    """
    header = ["", comparisons[0].base, *(one.new for one in comparisons)]
    rows = [*_text_rows(comparisons), *_data_rows(comparisons), *_task_rows(comparisons)]
    if any(one.forgetting for one in comparisons):
        rows.append(("forgetting, all tasks", "", [_forgetting(one) for one in comparisons]))
    rows.append(("nothing but selected rows differs", "", [verified_text(one) for one in comparisons]))
    rows.append(("verdict", "", [str(one.verdict.outcome) for one in comparisons]))
    return [ResultTable("What was learned and lost", header, [[what, base, *new] for what, base, new in rows])]


def flips_table(comparison: Comparison, shown: int) -> ResultTable:
    """The first items that flipped in either direction, of every task and of the training data.

    Args:
        comparison: of two models.
        shown: how many of each direction and task.
    """
    tasks = [*comparison.tasks, *([comparison.data.right] if comparison.data else [])]
    rows = [
        [f"{task.pair.name}: {kind}", _short(before.prompt), _short(before.target), before_said, after_said]
        for task in tasks
        if task.flips is not None
        for kind, indices in (("lost", task.flips.lost), ("gained", task.flips.gained))
        for before, after in (task.pair.at(index) for index in indices[:shown])
        for before_said, after_said in ((_short(before.answer), _short(after.answer)),)
    ]
    title = f"Flips from {comparison.base} to {comparison.new}"
    return ResultTable(title, ["task", "question", "right answer", comparison.base, comparison.new], rows)


def comparison_file(comparisons: Sequence[Comparison], *, flips_shown: int = 10) -> dict[str, Any]:
    """What `loki compare --output` writes, and the report and pictures are made of.

    Args:
        comparisons: of one base with one or more models.
        flips_shown: how many items that flipped are kept, of each direction and task.
    """
    tables = comparison_tables(comparisons)
    tables += [table for one in comparisons if (table := flips_table(one, flips_shown)).rows]
    reasons = [f"{one.new}: {reason}" for one in comparisons for reason in one.verdict.reasons]
    return {
        "comparisons": [comparison_values(one) for one in comparisons],
        "tables": [asdict(table) for table in tables],
        "reasons": reasons,
    }


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON values; what is not finite is null. Items are left out but for the numbers of the flips."""
    values = asdict(comparison)
    for task, found in zip(values["tasks"], comparison.tasks, strict=True):
        task.pop("pair")
        task |= {"task": found.pair.before.task, "metric": found.pair.before.metric, "items": found.items}
    if comparison.data is not None:
        values["data"]["right"].pop("pair")
        values["data"]["right"]["items"] = comparison.data.right.items
    finite: dict[str, Any] = json.loads(json.dumps(values), parse_constant=lambda _: None)
    return finite


def verified_text(comparison: Comparison) -> str:
    """Whether nothing but the selected rows differs, in words."""
    if comparison.identical:
        return "same model"
    report = comparison.verified
    if report is None:
        return "rows not known" if comparison.adapter_rows is None else "needs both models"
    if report.differences:
        return f"NO: {len(report.differences)} tensors differ elsewhere"
    if comparison.adapter_rows is not None:
        return f"yes: LoKI adapter of {comparison.adapter_rows} rows"
    return f"yes: {report.changed_rows} of {report.selected_rows} rows changed"


def _text_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    rows: list[Row] = []
    for index, text in enumerate(comparisons[0].texts):
        found = [one.texts[index] for one in comparisons]
        unit = "loss per byte" if text.per_byte else "loss"
        rows.append((f"{text.name}: {unit}", f"{text.base:.4f}", [f"{one.new:.4f}" for one in found]))
        if not text.per_byte:
            rows.append(
                (
                    f"{text.name}: perplexity",
                    _perplexity(text.base),
                    [_perplexity(one.new) if not one.per_byte else "other tokenizer" for one in found],
                )
            )
        rows.append(
            (f"{text.name}: rise of {unit}", "", [f"{one.new - one.base:+.4f} {span(one.interval)}" for one in found])
        )
        kls = [f"{one.kl.kl:.4g} {span(one.kl.interval)}" if one.kl else _without_kl(one.per_byte) for one in found]
        rows.append((f"{text.name}: KL(base || new) per token", "", kls))
    return rows


def _data_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    data = [one.data for one in comparisons if one.data]
    if len(data) < len(comparisons):
        return []
    name = data[0].right.pair.before.metric
    return [
        (
            "data: loss of the answers",
            f"{data[0].base_loss:.4f}",
            [f"{one.new_loss:.4f} ({one.new_loss - one.base_loss:+.4f} {span(one.interval)})" for one in data],
        ),
        (f"data: {name}", f"{data[0].right.base:.3f}", [_score(one.right) for one in data]),
    ]


def _task_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    rows: list[Row] = []
    for index, task in enumerate(comparisons[0].tasks):
        found = [one.tasks[index] for one in comparisons]
        name = task.pair.name
        rows.append((f"{name}, {task.items} items", f"{task.base:.3f}", [_score(one) for one in found]))
        if task.flips is not None:
            rows.append((f"{name}: lost, gained, McNemar p", "", [_flips(one) for one in found]))
            least = [f"{one.least_detectable:.3f}" for one in found if one.least_detectable is not None]
            rows.append((f"{name}: least change these items show", "", least))
        rows.append((f"{name}: forgetting", "", [_task_forgetting(one) for one in found]))
    return rows


def _score(task: TaskComparison) -> str:
    return f"{task.new:.3f} ({task.new - task.base:+.3f} {_interval(task.interval)})"


def _flips(task: TaskComparison) -> str:
    flips = task.flips
    return f"{len(flips.lost)}, {len(flips.gained)}, p = {flips.p_value:.2g}" if flips else ""


def _task_forgetting(task: TaskComparison) -> str:
    lost = task.forgetting
    if lost.percent is None or lost.interval is None:
        return lost.reason
    return f"{lost.percent:.2f}% {_interval(lost.interval, '%', '.2f')}"


def _forgetting(comparison: Comparison) -> str:
    lost = comparison.forgetting
    if lost is None or lost.percent is None or lost.interval is None:
        return "cannot be said"
    return f"{lost.percent:.2f}% {_interval(lost.interval, '%', '.2f')}"


def _interval(interval: Interval, unit: str = "", form: str = "+.3f") -> str:
    return span(interval, unit, form) if math.isfinite(interval.high) else "[unknown]"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 50 else "huge"


def _without_kl(per_byte: bool) -> str:
    return "other tokenizer" if per_byte else "needs both models"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _PROMPT_SHOWN else "..." + line[3 - _PROMPT_SHOWN :]
