import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.progress import Progress

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.selection.quota import rows_for_quota
from loki.selection.select import check_scores, make_counter, select
from loki.selection.strategies import STRATEGIES, SelectionSettings, as_table, find_strategy
from loki.selection.strategy import By, Input, Scope
from tests.artefacts.scores_files import write_scores
from tests.selection.reference import naive_global, naive_layer_balanced


def save_scores(path: Path, scores: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=scores)
    return path


BY_SCORES = [
    name for name, strategy in STRATEGIES.items() if strategy.needs <= {Input.SCORES} and not strategy.definition
]


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """Rounded, so that many scores are equal."""
    return np.random.default_rng(0).normal(size=(40, 3, 20)).round(1).astype(np.float32)


@pytest.fixture(scope="module")
def scores_file(scores: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scores(tmp_path_factory.mktemp("scores") / "scores.h5", scores)


def test_layer_balanced_is_the_default(scores_file: Path, scores: np.ndarray) -> None:
    assert select(scores_file, 30) == naive_layer_balanced(scores, 6)


@pytest.mark.parametrize("highest", [False, True])
def test_global(scores_file: Path, scores: np.ndarray, highest: bool) -> None:
    positions = select(scores_file, 17, SelectionSettings("global_highest" if highest else "global_lowest"))
    assert positions == naive_global(scores, 10, highest)


@pytest.mark.parametrize("strategy", BY_SCORES)
def test_all_rows_at_a_quota_of_100(scores_file: Path, strategy: str) -> None:
    assert select(scores_file, 100, SelectionSettings(strategy)) == [list(range(20))] * 3


def test_random_is_seeded_and_as_large_in_every_layer(scores_file: Path) -> None:
    first = select(scores_file, 40, SelectionSettings("random", seed=1))
    assert first == select(scores_file, 40, SelectionSettings("random", seed=1))
    assert first != select(scores_file, 40, SelectionSettings("random", seed=2))
    assert [len(rows) for rows in first] == [8, 8, 8]
    assert all(rows == sorted(set(rows)) and max(rows) < 20 for rows in first)


@given(st.sampled_from(BY_SCORES), st.lists(st.sets(st.integers(0, 19), max_size=10), min_size=3, max_size=3))
@settings(max_examples=25)
def test_exclude_gives_disjoint_rows_of_the_same_quota(
    scores_file: Path, strategy: str, excluded: list[set[int]]
) -> None:
    positions = select(scores_file, 50, SelectionSettings(strategy), exclude=[list(rows) for rows in excluded])
    assert all(rows.isdisjoint(chosen) for rows, chosen in zip(excluded, positions, strict=True))
    assert sum(map(len, positions)) == 30


@pytest.mark.parametrize("strategy", ["layer_balanced", "random"])
def test_too_few_rows_left(scores_file: Path, strategy: str) -> None:
    with pytest.raises(LokiError, match=r"12 rows of 8 .*excluded"):
        select(scores_file, 60, SelectionSettings(strategy), exclude=[[], list(range(12)), []])


@pytest.mark.parametrize("strategy", BY_SCORES)
def test_exclusion_for_another_model(scores_file: Path, strategy: str) -> None:
    with pytest.raises(LokiError, match=r"exclude: .*1 layers.* 3"):
        select(scores_file, 10, SelectionSettings(strategy), exclude=[[1]])


@pytest.mark.parametrize("strategy", BY_SCORES)
@pytest.mark.parametrize("quota", [0, -1, 101, float("nan")])
def test_quota_out_of_range(scores_file: Path, strategy: str, quota: float) -> None:
    with pytest.raises(LokiError, match="out of range"):
        select(scores_file, quota, SelectionSettings(strategy))


def test_quota_that_selects_nothing(scores_file: Path) -> None:
    with pytest.raises(LokiError, match=r"smallest quota .* 5$"):
        select(scores_file, 4.9)
    assert sum(map(len, select(scores_file, 4.9, SelectionSettings("global_lowest")))) == 2


def test_unknown_strategy() -> None:
    with pytest.raises(LokiError, match=r"'lowest' .* layer_balanced, .*random, "):
        SelectionSettings("lowest")


@given(st.sampled_from(BY_SCORES), st.floats(5, 100), st.sampled_from(By))
@settings(max_examples=25)
def test_sizes_add_up_and_the_same_call_selects_the_same(
    scores_file: Path, strategy: str, quota: float, by: By
) -> None:
    choice = SelectionSettings(strategy, by if find_strategy(strategy).counting else By.SIGNED)
    positions = select(scores_file, quota, choice)
    assert positions == select(scores_file, quota, choice)
    assert all(rows == sorted(set(rows)) and set(rows) <= set(range(20)) for rows in positions)
    if find_strategy(strategy).scope is Scope.LAYER:
        assert [len(rows) for rows in positions] == [rows_for_quota(quota, 20)] * 3
    else:
        assert sum(map(len, positions)) == rows_for_quota(quota, 60)


def test_the_documentation_shows_the_strategies_as_they_are_registered() -> None:
    assert as_table() in (Path(__file__).parents[2] / "docs" / "guides" / "strategies.md").read_text()


def test_an_order_without_scores_to_order_by() -> None:
    for strategy in ("random", "magnitude", "wanda", "task_aware"):
        with pytest.raises(LokiError, match=f"{strategy} .*leave out --by absolute"):
            SelectionSettings(strategy, By.ABSOLUTE)


def test_published_scores_are_signed_integrated_gradients(tmp_path: Path) -> None:
    scores = np.ones((1, 2, 20), np.float32)
    for made in ({"definition": "sensitivity"}, {"absolute": True}):
        file = write_scores(tmp_path / "scores.h5", scores, **made)
        check_scores(file, SelectionSettings())
        with pytest.raises(LokiError, match="loki analyse --published"):
            check_scores(file, SelectionSettings(), published=True)
    check_scores(write_scores(tmp_path / "scores.h5", scores), SelectionSettings(), published=True)


def test_unknown_order() -> None:
    with pytest.raises(LokiError, match=r"'unsigned'.* signed .*absolute"):
        SelectionSettings(by="unsigned")  # type: ignore[arg-type]


def test_random_does_not_count() -> None:
    with pytest.raises(LokiError, match=r"layer_balanced, .*global_highest$"):
        make_counter(SelectionSettings("random"), 10, 3, 20)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_not_a_number_names_sample_and_layer(tmp_path: Path, scores: np.ndarray, value: float) -> None:
    broken = scores.copy()
    broken[33, 2, 5] = value
    with pytest.raises(LokiError, match=r"sample .*33.*, layer 2"):
        select(save_scores(tmp_path / "scores.h5", broken), 10)


def test_published_half_precision_files_are_read(tmp_path: Path, scores: np.ndarray) -> None:
    half = scores.astype(np.float16)
    assert select(save_scores(tmp_path / "scores.h5", half), 25) == naive_layer_balanced(half, 5)


def test_file_problems_are_one_line(tmp_path: Path, scores: np.ndarray) -> None:
    with pytest.raises(LokiError, match=r"none\.h5 .*exist"):
        select(tmp_path / "none.h5", 10)
    whole = save_scores(tmp_path / "whole.h5", scores).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LokiError, match=r"cut\.h5"):
        select(tmp_path / "cut.h5", 10)
    with pytest.raises(LokiError, match=r"flat\.h5"):
        select(save_scores(tmp_path / "flat.h5", scores[0]), 10)
    with pytest.raises(LokiError, match="sample"):
        select(save_scores(tmp_path / "empty.h5", scores[:0]), 10)


def test_progress_counts_the_samples(scores_file: Path) -> None:
    with Progress(disable=True) as progress:
        select(scores_file, 10, progress=progress)
    assert [(task.completed, task.total) for task in progress.tasks] == [(40, 40)]


def peak_memory(path: Path, samples: int) -> int:
    with h5py.File(path, "w") as file:  # zeros, which take no room on disk when they are compressed
        dataset = file.create_dataset("dataset", (samples, 4, 2048), "float32", chunks=(1, 4, 2048), compression="gzip")
        for start in range(0, samples, 100):
            dataset[start : start + 100] = 0.0
    tracemalloc.start()
    try:
        select(path, 10)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    few, many = (peak_memory(tmp_path / f"{samples}.h5", samples) for samples in (1000, 3000))
    assert many < 1.1 * few  # the scores alone would take 98 MB instead of 33 MB


def test_excluded_positions_may_be_unsorted(scores_file: Path, scores: np.ndarray) -> None:
    exclude: Positions = [[3, 1], [], [19, 0]]
    assert select(scores_file, 30, exclude=exclude) == naive_layer_balanced(scores, 6, exclude)
