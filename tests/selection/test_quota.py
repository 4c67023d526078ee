import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki.errors import LokiError
from loki.selection.quota import rows_for_quota


@pytest.mark.parametrize(
    ("quota", "rows", "selected"),
    [
        (30, 10, 3),
        (0.29 * 100, 100, 29),  # 28.999999999999996
        (1.1 * 3 * 10, 1000, 330),  # 33.00000000000001
        (10, 896, 89),
        (9.99, 100, 9),
        (99.999, 100, 99),
        (100, 7, 7),
        (1e-5, 10**7, 1),
    ],
)
def test_is_the_floor_of_the_decimal_number(quota: float, rows: int, selected: int) -> None:
    assert rows_for_quota(quota, rows) == selected


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_percentages_with_two_decimals_are_exact(hundredths: int, rows: int) -> None:
    expected = hundredths * rows // 10_000
    if expected:
        assert rows_for_quota(hundredths / 100, rows) == expected


@pytest.mark.parametrize("quota", [0, -5, 100.001, math.nan, math.inf, -math.inf])
def test_out_of_range(quota: float) -> None:
    with pytest.raises(LokiError, match=r"out of range: .*0 .*100"):
        rows_for_quota(quota, 100)


@pytest.mark.parametrize(("rows", "smallest"), [(896, "0.1117"), (100, "1"), (1000, "0.1"), (3, "33.34")])
def test_too_small_names_a_quota_that_gives_a_row(rows: int, smallest: str) -> None:
    with pytest.raises(LokiError, match=f"smallest quota .* {smallest}$"):
        rows_for_quota(float(smallest) * 0.99, rows)
    assert rows_for_quota(float(smallest), rows) == 1
