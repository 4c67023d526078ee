"""The benchmark of attribution runs from beginning to end, and what it measures is the same as Captum's."""

import importlib
from pathlib import Path

import pytest
import torch

from tests.tolerances import RELATIVE_ERROR

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_tiny_shape_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kva, shapes, report = (importlib.import_module(name) for name in ("kva", "kva_shapes", "kva_report"))
    ((name, shape),) = shapes.QUICK_SHAPES.items()
    model = shape.model()
    result = kva.measure(name, shape, 1, model, kva.paper_gap(shape, model), 1)
    assert max(result.gap_captum, result.gap_paper) <= RELATIVE_ERROR[torch.float32]
    assert min(result.captum, result.engine_captum, result.engine_paper, result.forward) > 0
    assert 0 <= result.outside_captum < 1
    reached = report.targets([result], shapes.QUICK_SHAPES, None)
    assert any("Captum" in target.name for target in reached)
