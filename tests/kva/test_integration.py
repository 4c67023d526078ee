import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loki.kva.integration import FEW_STEPS, completeness_advice, completeness_gap, integration_rule
from loki.kva.settings import IG_METHODS


def test_left_rule_is_the_papers() -> None:
    rule = integration_rule("riemann_left", 7)
    assert rule.alphas == pytest.approx([k / 7 for k in range(7)])
    assert rule.weights == pytest.approx([1 / 7] * 7)


def test_trapezoid_rule_is_captums() -> None:
    rule = integration_rule("riemann_trapezoid", 7)
    assert rule.alphas[0] == 0.0 and rule.alphas[-1] == 1.0
    assert rule.weights == pytest.approx([1 / 14, *[1 / 7] * 5, 1 / 14])


@pytest.mark.parametrize("method", IG_METHODS)
def test_rules_converge_to_the_integral(method: str) -> None:
    rule = integration_rule(method, 400)
    found = sum(weight * alpha**3 for alpha, weight in zip(rule.alphas, rule.weights, strict=True))
    assert found == pytest.approx(0.25, abs=3e-3)


@given(st.sampled_from(IG_METHODS), st.integers(2, 30))
def test_points_ascend_within_the_path(method: str, steps: int) -> None:
    rule = integration_rule(method, steps)
    assert len(rule.alphas) == len(rule.weights) == steps
    assert list(rule.alphas) == sorted(rule.alphas)
    assert all(0.0 <= alpha <= 1.0 for alpha in rule.alphas)
    assert min(rule.weights) > 0


def test_completeness_gap() -> None:
    assert completeness_gap(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 0.0
    assert completeness_gap(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)
    assert completeness_gap(torch.zeros(2), torch.zeros(2)) == 0.0


@pytest.mark.parametrize(("completeness", "advice"), [(0.1, False), (FEW_STEPS, False), (0.3, True), (math.nan, False)])
def test_advice_where_steps_are_few(completeness: float, advice: bool) -> None:
    for rule, tried in (("riemann_left", "--ig-method gausslegendre --steps 7"), ("gausslegendre", "--steps 14")):
        text = completeness_advice(completeness, rule, 7)
        assert (text is not None) == advice
        assert text is None or ("misses 30% of" in text and text.endswith(f"try {tried}"))
