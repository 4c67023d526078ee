import pytest

from loki.kva.fast.memory import MemoryCost, free_memory, shown_bytes
from loki.kva.fast.path import PathPoint
from tests.tiny_models import tiny_model


def test_sizes_for_people() -> None:
    shown = [shown_bytes(size) for size in (0, 1000, 1024, 3 * 2**19, 5 * 2**30)]
    assert shown == ["0 bytes", "1000 bytes", "1 KiB", "1.5 MiB", "5 GiB"]


def test_some_memory_is_free() -> None:
    assert free_memory(tiny_model()) > 2**20


@pytest.mark.parametrize("own_prefix", [True, False])
def test_lower_layers_and_longer_prompts_cost_more(own_prefix: bool) -> None:
    short, long = (MemoryCost.of(tiny_model(), length, own_prefix=own_prefix) for length in (10, 100))
    assert long.prompt == 10 * short.prompt
    costs = [long.point(PathPoint(layer, 0.0, 0.0)) for layer in range(3)]
    assert costs == sorted(costs, reverse=True)
    assert (long.point(PathPoint(0, 0.0, 0.0)) > short.point(PathPoint(0, 0.0, 0.0))) == own_prefix
