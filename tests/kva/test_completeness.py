import math

import pytest
import torch

from loki.kva.completeness import FEW_STEPS, completeness_advice, relative_gap


def test_relative_gap() -> None:
    assert relative_gap(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 0.0
    assert relative_gap(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)
    assert relative_gap(torch.zeros(2), torch.zeros(2)) == 0.0


@pytest.mark.parametrize(("completeness", "advice"), [(0.1, False), (FEW_STEPS, False), (0.3, True), (math.nan, False)])
def test_advice_where_steps_are_few(completeness: float, advice: bool) -> None:
    text = completeness_advice(completeness, 7)
    assert (text is not None) == advice
    assert text is None or ("misses 30% of" in text and "try --steps 14" in text)
