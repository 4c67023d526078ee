from hypothesis import given
from hypothesis import strategies as st

from loki.analysis.batches import auto_batch_size, plan_batches, processing_order, windows


@given(st.lists(st.integers(1, 500), max_size=300), st.integers(1, 9))
def test_every_sample_is_in_one_batch_and_windows_are_contiguous(lengths: list[int], batch_size: int) -> None:
    batches = plan_batches(lengths, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    first = 0
    for window in windows(batches):
        indices = sorted(index for number in window for index in batches[number])
        assert indices == list(range(first, first + len(indices)))
        first += len(indices)


def test_similar_lengths_come_together() -> None:
    assert plan_batches([9, 1, 8, 2], 2) == [[1, 3], [2, 0]]


def test_order_depends_on_the_seed_alone() -> None:
    assert sorted(processing_order(50, 3)) == list(range(50))
    assert processing_order(50, 3) == processing_order(50, 3) != processing_order(50, 4)


def test_automatic_size_shrinks_with_the_prompts() -> None:
    assert [auto_batch_size([length], "cpu") for length in (1, 100, 600)] == [32, 5, 1]
    assert auto_batch_size([600], "cuda") == 6
