"""The counters against the naive rule, for all sizes, ties, chunks and processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loki.errors import LokiError
from loki.selection.accumulators import RowCounter
from loki.selection.strategy import By, Counting, Scope
from tests.selection.reference import naive_global, naive_layer_balanced, naive_mean

any_score = st.floats(width=32, allow_nan=False, allow_infinity=False)
tied_score = st.sampled_from([-1.0, -0.0, 0.0, 2.0**-140, 0.1, 0.3, 3e38]).map(np.float32)


@st.composite
def scores_and_k(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9)))
    scores = draw(arrays(np.float32, shape, elements=draw(st.sampled_from([any_score, tied_score]))))
    return scores, draw(st.integers(1, shape[2]))


def counted(counter: RowCounter, scores: np.ndarray, chunk: int) -> RowCounter:
    for start in range(0, len(scores), chunk):
        counter.update(scores[start : start + chunk])
    return counter


@given(scores_and_k(), st.integers(1, 6))
def test_layer_balanced_equals_the_naive_rule(case: tuple[np.ndarray, int], chunk: int) -> None:
    scores, k = case
    counter = counted(RowCounter(*scores.shape[1:], k), scores, chunk)
    assert counter.positions() == naive_layer_balanced(scores, k)


@given(scores_and_k(), st.integers(1, 6), st.booleans())
def test_global_equals_the_naive_rule(case: tuple[np.ndarray, int], chunk: int, highest: bool) -> None:
    scores, total = case
    counter = counted(RowCounter(*scores.shape[1:], total, Scope.MODEL, Counting(highest=highest)), scores, chunk)
    assert counter.positions() == naive_global(scores, total, highest)


@given(scores_and_k(), st.integers(1, 6))
def test_the_mean_alone_equals_the_naive_rule(case: tuple[np.ndarray, int], chunk: int) -> None:
    scores, k = case
    counter = counted(RowCounter(*scores.shape[1:], k, counting=Counting(votes=False)), scores, chunk)
    assert counter.positions() == naive_mean(scores, k)


@given(scores_and_k(), st.sampled_from(Scope), st.booleans(), st.booleans())
def test_absolute_equals_signed_on_absolute_scores(
    case: tuple[np.ndarray, int], scope: Scope, votes: bool, highest: bool
) -> None:
    scores, k = case
    shape, counting = scores.shape[1:], Counting(votes, highest)
    absolute = counted(RowCounter(*shape, k, scope, counting, By.ABSOLUTE), scores, 3)
    signed = counted(RowCounter(*shape, k, scope, counting), np.abs(scores), 3)
    assert absolute.positions() == signed.positions()


@given(scores_and_k(), st.data())
def test_excluded_rows_count_as_absent(case: tuple[np.ndarray, int], data: st.DataObject) -> None:
    scores, k = case
    layers, hidden = scores.shape[1:]
    rows = st.lists(st.integers(0, hidden - 1), unique=True, max_size=hidden - k)
    exclude = data.draw(st.lists(rows, min_size=layers, max_size=layers))
    balanced = counted(RowCounter(layers, hidden, k, exclude=exclude), scores, 2)
    assert balanced.positions() == naive_layer_balanced(scores, k, exclude)
    highest = counted(RowCounter(layers, hidden, k, Scope.MODEL, Counting(highest=True), exclude=exclude), scores, 2)
    assert highest.positions() == naive_global(scores, k, True, exclude)


@given(scores_and_k(), st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_and_processes_do_not_matter(case: tuple[np.ndarray, int], random: object, processes: int) -> None:
    scores, k = case
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shares = [scores[order[rank::processes]] for rank in range(processes)]
    total, *others = [counted(RowCounter(*scores.shape[1:], k), share, 2) for share in shares]
    for other in others:
        total.merge(other)
    assert total.samples == len(scores)
    whole = counted(RowCounter(*scores.shape[1:], k), scores, 100)
    assert total.positions() == whole.positions()


@given(scores_and_k(), st.integers(0, 6))
def test_a_restored_counter_continues_where_it_was(case: tuple[np.ndarray, int], done: int) -> None:
    scores, k = case
    first = counted(RowCounter(*scores.shape[1:], k), scores[:done], 2)
    saved = first.state()
    first.update(scores)  # what happens after saving must not reach the saved arrays
    second = RowCounter(*scores.shape[1:], k)
    second.restore(saved)
    second.update(scores[done:])
    assert second.positions() == naive_layer_balanced(scores, k)
    assert second.samples == len(scores)


def test_half_precision_scores_of_published_files() -> None:
    scores = np.random.default_rng(0).normal(size=(7, 2, 30)).astype(np.float16)
    counter = counted(RowCounter(2, 30, 9), scores, 3)
    assert counter.positions() == naive_layer_balanced(scores, 9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_counts_nothing(value: float) -> None:
    scores = np.ones((3, 4, 5), dtype=np.float32)
    counter = RowCounter(4, 5, 2)
    counter.update(scores)
    before = counter.state()
    scores[1, 2, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        counter.update(scores)
    assert all(np.array_equal(before[name], array) for name, array in counter.state().items())


@pytest.mark.parametrize("shape", [(4, 5), (1, 5, 4), (1, 4, 5, 1)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LokiError, match=r"\[samples, 4 layers, 5 rows\]"):
        RowCounter(4, 5, 2).update(np.zeros(shape, dtype=np.float32))


def test_nothing_counted_is_an_error() -> None:
    with pytest.raises(LokiError, match="no sample"):
        RowCounter(1, 5, 2).positions()


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_leave_something_to_choose(k: int) -> None:
    with pytest.raises(LokiError, match=f"{k} rows of 3"):
        RowCounter(2, 5, k, exclude=[[], [0, 4]])


def test_exclusion_for_another_model_is_refused() -> None:
    with pytest.raises(LokiError, match=r"exclude: layer 1 .*row 5"):
        RowCounter(2, 5, 1, exclude=[[], [5]])


@pytest.mark.parametrize(
    "other",
    [
        RowCounter(2, 5, 3),
        RowCounter(2, 5, 2, exclude=[[2], []]),
        RowCounter(2, 5, 2, Scope.MODEL, exclude=[[1], []]),
        RowCounter(2, 5, 2, by=By.ABSOLUTE, exclude=[[1], []]),
        RowCounter(2, 5, 2, counting=Counting(votes=False), exclude=[[1], []]),
    ],
)
def test_counts_of_something_else_do_not_merge(other: RowCounter) -> None:
    with pytest.raises(LokiError, match="cannot merge"):
        RowCounter(2, 5, 2, exclude=[[1], []]).merge(other)  # type: ignore[arg-type]


def test_state_of_another_shape_is_refused() -> None:
    with pytest.raises(LokiError, match="saved counts"):
        RowCounter(2, 5, 2).restore(RowCounter(2, 6, 2).state())
