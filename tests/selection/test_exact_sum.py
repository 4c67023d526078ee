"""Sums of any float32 numbers, compared with exact fractions."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loki.selection.exact_sum import ExactSum

terms = arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.just(4)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def fractions(values: np.ndarray) -> list[Fraction]:
    return [sum(map(Fraction, map(float, column)), Fraction(0)) for column in values.T]


@given(terms)
def test_limbs_hold_the_exact_sum(values: np.ndarray) -> None:
    exact = ExactSum((4,))
    exact.add(values)
    units = [Fraction(2) ** (36 * limb - 149) for limb in range(len(exact.limbs))]
    total = [sum(int(limb) * unit for limb, unit in zip(column, units, strict=True)) for column in exact.limbs.T]
    assert total == fractions(values)


@given(terms)
def test_sort_keys_order_as_the_sums_do(values: np.ndarray) -> None:
    exact = ExactSum((4,))
    exact.add(values)
    sums = fractions(values)
    assert np.lexsort(exact.sort_keys()).tolist() == sorted(range(4), key=sums.__getitem__)


def test_many_large_terms_do_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    exact = ExactSum((2,))
    for _ in range(3):
        exact.add(np.full((2**17, 2), [largest, -largest], dtype=np.float32))
    unit = Fraction(2) ** (36 * 7 - 149)
    total = 3 * 2**17 * Fraction(float(largest))
    assert [int(limb) * unit for limb in exact.limbs[7]] == [total, -total]
    assert not exact.limbs[:7].any()
