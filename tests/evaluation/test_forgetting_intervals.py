"""The paper's forgetting over tasks, with intervals."""

import math

import numpy as np
import pytest

from loki.evaluation.forgetting import AT_CHANCE, LOWER_IS_BETTER, NOTHING_RIGHT, TaskScores, forgetting
from loki.evaluation.statistics import unseen_rate


def marks(right: int, items: int) -> np.ndarray:
    return np.array([1.0] * right + [0.0] * (items - right))


def test_formula_of_the_paper() -> None:
    tasks = {
        "a": TaskScores(marks(50, 100), marks(45, 100)),
        "b": TaskScores(marks(80, 100), marks(88, 100)),
        "c": TaskScores(marks(20, 100), marks(10, 100)),
    }
    found = forgetting(tasks)
    assert [task.percent for task in found.tasks.values()] == pytest.approx([10, -10, 50])
    assert found.percent == pytest.approx(50 / 3)
    assert found.interval is not None
    assert found.interval.low < 50 / 3 < found.interval.high


def test_a_base_at_nothing_or_chance_is_reported_and_not_divided_by() -> None:
    tasks = {
        "known": TaskScores(marks(60, 100), marks(54, 100), chance=0.25),
        "zero": TaskScores(marks(0, 100), marks(3, 100)),
        "guessed": TaskScores(marks(26, 100), marks(20, 100), chance=0.25),
        "perplexity": TaskScores(np.full(3, 9.0), np.full(3, 8.0), higher_is_better=False),
    }
    found = forgetting(tasks)
    assert {name: task.reason for name, task in found.tasks.items()} == {
        "known": "",
        "zero": NOTHING_RIGHT,
        "guessed": AT_CHANCE,
        "perplexity": LOWER_IS_BETTER,
    }
    assert found.percent == pytest.approx(10)
    assert forgetting({"zero": tasks["zero"]}).percent is None


@pytest.mark.slow
def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        chance = np.random.default_rng(seed)
        tasks = {}
        for name, before, lost in (("a", 0.5, 0.2), ("b", 0.7, 0.1), ("c", 0.9, 0.0)):
            base = chance.random(300) < before
            new = base & (chance.random(300) >= lost)
            tasks[name] = TaskScores(base.astype(float), new.astype(float))
        interval = forgetting(tasks, seed=seed).interval
        assert interval is not None
        covered += interval.low <= 10 <= interval.high
    assert covered >= 50


def test_tasks_without_flips_leave_what_their_items_leave() -> None:
    tasks = {name: TaskScores(marks(50, 100), marks(50, 100)) for name in "ab"}
    found = forgetting(tasks)
    one = 100 * unseen_rate(100) / 0.5
    assert found.tasks["a"].interval is not None and found.interval is not None
    assert found.tasks["a"].interval.high == pytest.approx(one)
    assert (found.interval.low, found.interval.high) == pytest.approx((-one / math.sqrt(2), one / math.sqrt(2)))


def test_one_model_is_certain_of_itself() -> None:
    found = forgetting({"a": TaskScores(marks(50, 100), marks(50, 100))}, identical=True)
    assert found.interval is not None
    assert (found.percent, found.interval.low, found.interval.high) == (0, 0, 0)


def test_resamples_without_a_right_answer_leave_the_interval_open() -> None:
    interval = forgetting({"a": TaskScores(marks(1, 20), marks(1, 20))}).interval
    assert interval is not None
    assert interval.high == math.inf
