"""Scores item by item: what two models are compared by, wherever they were measured."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from loki.errors import LokiError
from loki.evaluation.statistics import Values


@dataclass(frozen=True)
class Item:
    """One model's answer to one question.

    Attributes:
        score: of the answer; 1 is right and 0 is wrong, where it is one or the other.
        prompt: the question, as it was asked.
        target: the answer that counts as right.
        answer: what the model said or chose.
    """

    score: float
    prompt: str = ""
    target: str = ""
    answer: str = ""


@dataclass(frozen=True)
class TaskItems:
    """One model's scores on the items of one task, by one metric.

    Attributes:
        task: name of the task.
        metric: name of the metric, with its filter (`acc,none`).
        items: by an identity that does not depend on the model: the hash of the question, or its number.
        fewshot: number of examples in the prompt.
        version: of the task.
        higher_is_better: whether more is better.
        chance: the score of guessing; 0 where guessing is hopeless.
        setting: whatever else decides the prompt (chat template, system instruction), in words.
    """

    task: str
    metric: str
    items: dict[str, Item] = field(repr=False)
    fewshot: int = 0
    version: str = ""
    higher_is_better: bool = True
    chance: float = 0.0
    setting: str = ""

    @property
    def scores(self) -> Values:
        """`[N]` float64."""
        return np.array([item.score for item in self.items.values()], dtype=np.float64)


@dataclass(frozen=True)
class Pair:
    """One task, of two models.

    Attributes:
        before: of the base.
        after: of the new model; the same items in the same order.
    """

    before: TaskItems
    after: TaskItems

    @property
    def name(self) -> str:
        """What to call it in tables."""
        return f"{self.before.task} ({self.before.metric.removesuffix(',none')})"

    def at(self, index: int) -> tuple[Item, Item]:
        """Both answers to the item of a number."""
        return list(self.before.items.values())[index], list(self.after.items.values())[index]


def pair_tasks(base: dict[str, TaskItems], new: dict[str, TaskItems], *, names: tuple[str, str]) -> Iterator[Pair]:
    """The tasks of two models, item by item.

    Args:
        base: of the model before, by task.
        new: of the model after.
        names: what the two results are called in error messages.

    Raises:
        LokiError: if tasks, metrics, few-shot settings, versions, prompts or items differ, with the difference named.
    """
    only = sorted(base.keys() ^ new.keys())
    if only:
        holder, other = names if only[0] in base else names[::-1]
        raise LokiError(f"{holder} has the task {only[0]} and {other} has not: evaluate both on the same tasks")
    for task in base:
        yield _pair(base[task], new[task], names)


def _pair(before: TaskItems, after: TaskItems, names: tuple[str, str]) -> Pair:
    for what, attribute in (
        ("metric", "metric"),
        ("number of few-shot examples", "fewshot"),
        ("version of the task", "version"),
        ("prompt", "setting"),
    ):
        first, second = getattr(before, attribute), getattr(after, attribute)
        if first != second:
            raise LokiError(
                f"task {before.task}: the {what} is {first!r} in {names[0]} and {second!r} in {names[1]}: "
                "evaluate both in the same way"
            )
    missing = before.items.keys() ^ after.items.keys()
    if missing:
        raise LokiError(
            f"task {before.task}: {names[0]} has {len(before.items)} items and {names[1]} has {len(after.items)}, and "
            f"{len(missing)} are in one of them only: evaluate both on the same items (the same --limit)"
        )
    return Pair(before, TaskItems(**{**vars(after), "items": {key: after.items[key] for key in before.items}}))
