import pytest
import torch

from loki.kva.completeness import relative_gap


def test_relative_gap() -> None:
    assert relative_gap(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 0.0
    assert relative_gap(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)
    assert relative_gap(torch.zeros(2), torch.zeros(2)) == 0.0
