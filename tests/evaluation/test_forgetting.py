import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki.errors import LokiError
from loki.evaluation.forgetting import forgetting_percent

accuracies = st.dictionaries(st.text(min_size=1), st.floats(0.1, 1), min_size=1, max_size=5)


def test_is_the_mean_relative_drop() -> None:
    assert forgetting_percent({"a": 1.0, "b": 0.5}, {"a": 0.9, "b": 0.4}) == pytest.approx(100 * (0.1 + 0.2) / 2)


@given(accuracies, st.floats(0, 1))
def test_losing_the_same_share_everywhere_is_that_share(before: dict[str, float], kept: float) -> None:
    after = {family: kept * accuracy for family, accuracy in before.items()}
    assert forgetting_percent(before, after) == pytest.approx(100 * (1 - kept))


@pytest.mark.parametrize(("before", "after"), [({"a": 1.0}, {"b": 1.0}), ({}, {})])
def test_other_families(before: dict[str, float], after: dict[str, float]) -> None:
    with pytest.raises(LokiError, match="must be the same"):
        forgetting_percent(before, after)


def test_nothing_known_before() -> None:
    with pytest.raises(LokiError, match="nothing was known about b"):
        forgetting_percent({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.5})
