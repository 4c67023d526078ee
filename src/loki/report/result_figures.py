"""Pictures of results: ablation, forgetting, and what was learned against what was lost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from loki.errors import LokiError
from loki.evaluation.ablation import ORDERS, RANDOM, Ablation, AblationPoint
from loki.evaluation.result_schema import MEASURE_AGAIN, AblationFile
from loki.inputs import checked
from loki.report.axes import new_axes

_STYLES = {"lowest signed": "C0-", "highest signed": "C0--", "lowest absolute": "C1-", "highest absolute": "C1--"}


def ablation_figure(ablation: Ablation) -> Figure:
    """Rise of the loss against the share of rows at zero, by order; random draws one by one."""
    figure, axes = new_axes("rows of every layer set to zero, %", "rise of the loss, nats per token")
    quotas = ablation.quotas()
    for order in ORDERS:
        axes.plot(quotas, [ablation.rise(order, quota) for quota in quotas], _STYLES[order], marker=".", label=order)
    for number, rises in enumerate(zip(*(ablation.rises(RANDOM, quota) for quota in quotas), strict=True)):
        axes.plot(quotas, rises, color="gray", lw=1, marker=".", label="random draws" if not number else None)
    axes.set_xscale("log")
    axes.set_xticks(quotas, [f"{quota:g}" for quota in quotas])
    axes.minorticks_off()
    axes.set_yscale("symlog", linthresh=0.1)
    axes.legend(fontsize="small")
    return figure


def read_ablation(value: Any, origin: str = "ablation") -> Ablation:
    """From what the file of `loki ablate --output` holds.

    Args:
        value: as JSON.
        origin: what it is called in messages.

    Raises:
        LokiError: if it is something else.
    """
    if not isinstance(value, dict) or "points" not in value:
        raise LokiError(f"{origin} holds no ablation: make it with `loki ablate --output`")
    found = checked(AblationFile, value, origin, advice=MEASURE_AGAIN)
    points = [AblationPoint(one.order, one.seed, one.quota, one.loss, one.scores) for one in found.points]
    if missing := ORDERS.keys() - {point.order for point in points}:
        raise LokiError(f"{origin} has no curve {min(missing)}: make it again with `loki ablate --output`")
    return Ablation(found.base_loss, found.base_scores, tuple(points))


def forgetting_figure(comparisons: Sequence[Mapping[str, Any]]) -> Figure:
    """Forgetting of every task and of all, a bar with its interval for every model.

    Args:
        comparisons: what `loki compare --output` writes.

    Raises:
        LokiError: if no task of them can be said to be forgotten.
    """
    _check(comparisons)
    tasks = _tasks(comparisons)
    if not tasks:
        raise LokiError("the comparison holds no forgetting: compare with --tasks")
    figure, axes = new_axes("", "forgetting, %")
    width = 0.8 / len(comparisons)
    for number, one in enumerate(comparisons):
        found = [_lost(one, task) for task in tasks]
        places = np.arange(len(tasks)) + (number - (len(comparisons) - 1) / 2) * width
        values = [percent for percent, _, _ in found]
        below = [max(0.0, percent - low) for percent, low, _ in found]
        above = [max(0.0, high - percent) for percent, _, high in found]
        axes.bar(places, values, width, yerr=[below, above], capsize=3, label=short_name(one["new"]))
    axes.axhline(0, color="gray", lw=0.8)
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.legend(fontsize="small")
    return figure


def pareto_figure(comparisons: Sequence[Mapping[str, Any]]) -> Figure:
    """Exact match on the new task against damage: forgetting where it is known, else KL.

    Args:
        comparisons: what `loki compare --data ... --output` writes.

    Raises:
        LokiError: if one has no result on the new task.
    """
    _check(comparisons)
    if missing := next((one["new"] for one in comparisons if not one.get("data")), None):
        raise LokiError(f"the comparison with {missing} says nothing of the new task: compare with --data")
    by_forgetting = all((one.get("forgetting") or {}).get("percent") is not None for one in comparisons)
    figure, axes = new_axes(
        "forgetting, %" if by_forgetting else "KL(base || new) per token", "exact match on the data"
    )
    for one in comparisons:
        if by_forgetting:
            damage = one["forgetting"]["percent"]
        else:
            damage = next((text["kl"].get("kl") for text in one.get("texts", []) if text.get("kl")), None)
        if damage is None:
            raise LokiError(f"the comparison with {one['new']} measured no damage: compare with --tasks, or two models")
        right = one["data"]["right"].get("new")
        if right is None:
            raise LokiError(f"the comparison with {one['new']} says nothing of the new task: compare with --data")
        axes.plot(damage, right, "o", label=short_name(one["new"]))
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small")
    return figure


def short_name(name: str) -> str:
    """The last two parts of a path."""
    return "/".join(name.rstrip("/").split("/")[-2:])


def _check(comparisons: Any) -> None:
    if not isinstance(comparisons, list) or not comparisons or not all("new" in one for one in comparisons):
        raise LokiError("the file holds no comparison: make it with `loki compare --output`")


def _tasks(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    each = [(one.get("forgetting") or {}).get("tasks", {}) for one in comparisons]
    names = [task for task in each[0] if all(found.get(task, {}).get("percent") is not None for found in each)]
    return [*names, "all tasks"] if names else []


def _lost(one: Mapping[str, Any], task: str) -> tuple[float, float, float]:
    lost = one["forgetting"] if task == "all tasks" else one["forgetting"]["tasks"][task]
    percent = float(lost.get("percent") or 0)
    interval = lost.get("interval") or {}
    low, high = interval.get("low"), interval.get("high")
    return percent, percent if low is None else float(low), percent if high is None else float(high)
