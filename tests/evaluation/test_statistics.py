"""Statistics against SciPy's own tests, closed forms, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loki.errors import LokiError
from loki.evaluation.statistics import (
    above_chance,
    difference_interval,
    flips,
    items_to_settle,
    items_without_flips,
    least_detectable_change,
    ratio_interval,
    unseen_rate,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_interval_of_a_difference_is_about_that_of_a_t_test() -> None:
    chance = np.random.default_rng(3)
    base = chance.normal(size=400)
    new = base + chance.normal(0.1, 0.5, size=400)
    expected = stats.ttest_rel(new, base).confidence_interval(0.95)
    found = difference_interval(base, new)
    assert found.low == pytest.approx(expected.low, abs=0.005)
    assert found.high == pytest.approx(expected.high, abs=0.005)


def test_interval_is_the_same_for_the_same_seed() -> None:
    base, new = np.random.default_rng(0).integers(0, 2, (2, 60)).astype(float)
    assert difference_interval(base, new, seed=4) == difference_interval(base, new, seed=4)
    assert difference_interval(base, new, seed=4) != difference_interval(base, new, seed=5)


@pytest.mark.slow
def test_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        chance = np.random.default_rng(seed)
        counts = chance.integers(20, 60, 40).astype(float)
        sums = counts * chance.gamma(2.0, 0.05, 40)  # the mean is 0.1
        interval = ratio_interval(sums, counts, logarithmic=True)
        covered += interval.low <= 0.1 <= interval.high
    assert covered >= 50


def test_interval_of_a_text_covers_what_other_articles_give() -> None:
    """Windows of one article are alike: taken for independent, they would not say how much articles differ."""
    covered = {True: 0, False: 0}
    for seed in range(200):
        chance = np.random.default_rng(seed)
        articles = np.repeat(chance.gamma(16, 0.1 / 16, 12), 9)
        counts = chance.integers(200, 256, len(articles)).astype(float)
        sums = counts * articles * chance.gamma(9, 1 / 9, len(articles))
        for neighbours in covered:
            interval = ratio_interval(sums, counts, neighbours=neighbours, logarithmic=True)
            covered[neighbours] += interval.low <= 0.1 <= interval.high
    assert covered[True] >= 180
    assert covered[False] < 130


def test_no_difference_is_not_certainty() -> None:
    same = np.ones(100)
    found = difference_interval(same, same)
    # No flip in 100: Clopper and Pearson leave 3.62%.
    assert found.high == -found.low == pytest.approx(stats.binomtest(0, 100).proportion_ci(0.95).high)
    half = np.full(5, 0.5)
    assert difference_interval(half, half) == difference_interval(half + 1, half + 1)


def test_one_item_says_nothing_about_others() -> None:
    found = difference_interval(array(1), array(0))
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_no_item() -> None:
    with pytest.raises(LokiError, match="no item"):
        difference_interval(array(), array())


def test_ratio_of_blocks_that_are_all_alike() -> None:
    for logarithmic in (True, False):
        found = ratio_interval(np.zeros(7), np.full(7, 9.0), neighbours=True, logarithmic=logarithmic)
        assert (found.low, found.high) == (0, 0)


def test_interval_of_a_ratio_of_equal_counts_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3, 1, 50)
    found = ratio_interval(values * 7, np.full(50, 7.0))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    one = ratio_interval(values[:1], np.ones(1), neighbours=True, logarithmic=True)
    assert (one.low, one.high) == (-math.inf, math.inf)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_flips_are_tested_exactly(marks: list[tuple[bool, bool]]) -> None:
    base, new = np.array(marks, dtype=float).T
    found = flips(base, new)
    assert found.lost == [index for index, (before, after) in enumerate(marks) if before and not after]
    assert found.gained == [index for index, (before, after) in enumerate(marks) if after and not before]
    lost, gained = len(found.lost), len(found.gained)
    tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1)) / 2 ** (lost + gained)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def test_pairing_shows_what_unpaired_items_hide() -> None:
    base, new = np.zeros(200), np.zeros(200)
    base[:110] = 1
    new[12:112] = 1
    new[100:111] = 1
    assert flips(base, new).p_value == pytest.approx(stats.binomtest(2, 14).pvalue)
    assert stats.ttest_ind(base, new).pvalue > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("items", "share"), [(400, 0.1), (1000, 0.3)])
def test_the_least_detectable_change_is_detected_four_times_in_five(items: int, share: float) -> None:
    change = least_detectable_change(items, round(items * share))
    chance = np.random.default_rng(0)
    lost, gained = (share + change) / 2, (share - change) / 2
    drawn = chance.multinomial(items, [lost, gained, 1 - share], size=2000)
    tests = np.array([stats.binomtest(one, one + other).pvalue for one, other, _ in drawn])
    assert (tests < 0.05).mean() == pytest.approx(0.8, abs=0.05)


def test_fewer_than_six_flips_show_nothing() -> None:
    assert least_detectable_change(100, 0) == 0.06
    assert stats.binomtest(0, 6).pvalue < 0.05 < stats.binomtest(0, 5).pvalue
    assert least_detectable_change(3, 0) == 1


def test_items_to_settle() -> None:
    # Half the distance to the threshold needs half the width: four times as many items.
    assert items_to_settle(100, estimate=0.5, bound=2.5, threshold=1.5) == 400
    assert items_to_settle(100, estimate=1.0, bound=2.0, threshold=1.0) is None
    assert items_to_settle(1, estimate=1.0, bound=math.inf, threshold=0.0) is None


@given(st.floats(1e-4, 0.9))
def test_items_without_flips_hold_the_rate(rate: float) -> None:
    items = items_without_flips(rate)
    assert unseen_rate(items) <= rate * (1 + 1e-9)
    assert items == 1 or unseen_rate(items - 1) > rate * (1 - 1e-9)


def test_chance() -> None:
    assert not above_chance(27, 100, 0.25)
    assert above_chance(40, 100, 0.25)
    assert above_chance(1, 100, 0) and not above_chance(0, 100, 0)
