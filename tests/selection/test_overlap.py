import pytest

from loki.errors import LokiError
from loki.selection.overlap import overlap


def test_counts_what_both_hold_layer_by_layer() -> None:
    assert overlap([[0, 1], [2, 3]], [[1, 5], [3, 2]]) == 0.75
    assert overlap([[0], [1]], [[1], [0]]) == 0.0


def test_a_selection_inside_a_larger_one_overlaps_wholly() -> None:
    assert overlap([[0, 1, 2], [4]], [[1], [4]]) == 1.0


@pytest.mark.parametrize("other", [[[1]], [[], []]])
def test_what_cannot_be_compared(other: list[list[int]]) -> None:
    with pytest.raises(LokiError, match="cannot be compared"):
        overlap([[1], [2]], other)
