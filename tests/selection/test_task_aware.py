"""Gain per damage against the formula, on files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.selection.select import select
from loki.selection.strategies import SelectionSettings
from loki.selection.strategy import TASK_GRADIENT, Inputs
from tests.artefacts.scores_files import write_scores

TASK_AWARE = SelectionSettings("task_aware")
SHAPE = (2, 8)
squares = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])  # their sums are exact, so ties are ties


def files(folder: Path, sensitivity: np.ndarray, gradients: np.ndarray, **task: Any) -> Inputs:
    scores = write_scores(folder / "scores.h5", sensitivity.astype(np.float32), definition="sensitivity")
    task = {"definition": TASK_GRADIENT, **task}
    return Inputs(scores, task=write_scores(folder / "task.h5", gradients.astype(np.float32), **task))


def naive(sensitivity: np.ndarray, gradients: np.ndarray, k: int) -> Positions:
    """The k rows with the highest ratio of means, the lower index first among equals."""

    def ratio(layer: int, row: int) -> float:
        gain, damage = (float(array[:, layer, row].mean(dtype=np.float64)) for array in (gradients, sensitivity))
        return (gain / damage if damage else np.inf) if gain else 0.0

    layers, hidden = sensitivity.shape[1:]
    return [sorted(sorted(range(hidden), key=lambda row: (-ratio(layer, row), row))[:k]) for layer in range(layers)]


@given(arrays(np.float32, (3, *SHAPE), elements=squares), arrays(np.float32, (4, *SHAPE), elements=squares))
@settings(max_examples=25)
def test_highest_ratio_first(tmp_path_factory: pytest.TempPathFactory, sensitivity: Any, gradients: Any) -> None:
    inputs = files(tmp_path_factory.mktemp("task"), sensitivity, gradients)
    assert select(inputs, 25, TASK_AWARE) == naive(sensitivity, gradients, 2)


def test_excluded_rows_are_left_out(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sensitivity, gradients = (generator.uniform(0.1, 1, size=(3, *SHAPE)) for _ in range(2))
    inputs = files(tmp_path, sensitivity, gradients)
    first = select(inputs, 25, TASK_AWARE)
    second = select(inputs, 25, TASK_AWARE, exclude=first)
    both = naive(sensitivity.astype(np.float32), gradients.astype(np.float32), 4)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == both


@pytest.mark.parametrize(
    ("task", "problem"),
    [({"definition": "captum"}, "no gradients"), ({"model_fingerprint": "beef"}, "another model")],
)
def test_files_that_do_not_belong_together(tmp_path: Path, task: dict[str, str], problem: str) -> None:
    inputs = files(tmp_path, np.ones((1, *SHAPE)), np.ones((1, *SHAPE)), **task)
    with pytest.raises(LokiError, match=f"task.h5.*{problem}"):
        select(inputs, 25, TASK_AWARE)


@pytest.mark.parametrize("definition", ["captum", "paper"])
def test_scores_of_another_definition(tmp_path: Path, definition: str) -> None:
    inputs = files(tmp_path, np.ones((1, *SHAPE)), np.ones((1, *SHAPE)))
    wrong = write_scores(tmp_path / "wrong.h5", np.ones((1, *SHAPE), np.float32), definition=definition)
    with pytest.raises(LokiError, match=f"sensitivity, .*wrong.h5 is {definition}"):
        select(Inputs(wrong, task=inputs.task), 25, TASK_AWARE)


def test_a_tasks_gradients_are_no_scores(tmp_path: Path) -> None:
    inputs = files(tmp_path, np.ones((1, *SHAPE)), np.ones((1, *SHAPE)))
    assert inputs.task is not None
    with pytest.raises(LokiError, match=r"task\.h5 .*--task"):
        select(inputs.task, 25)


def test_a_file_without_samples(tmp_path: Path) -> None:
    inputs = files(tmp_path, np.ones((1, *SHAPE)), np.ones((0, *SHAPE)))
    with pytest.raises(LokiError, match=r"task\.h5 .*no samples"):
        select(inputs, 25, TASK_AWARE)
