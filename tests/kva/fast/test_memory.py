from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import PreTrainedModel

from loki.kva import AttributionSettings, make_attributor
from loki.kva.fast.engine import FastAttributor
from loki.kva.fast.memory import MemoryCost, free_memory, shown_bytes
from loki.kva.fast.path import IntegrationPath, PathPoint
from loki.kva.integration import integration_rule
from loki.kva.sensitivity import SensitivityAttributor
from tests.tiny_models import tiny_model

SIZES = {"hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 6}
PROMPT = list(range(5, 69))
# The estimate is over what autograd keeps, for temporaries that it does not; but not by so much that memory lies idle.
LEAST, MOST = 0.9, 3.0


@contextmanager
def kept_for_backward(model: PreTrainedModel) -> Iterator[dict[int, tuple[int, torch.Tensor]]]:
    """Bytes and tensor of all that autograd keeps for the backward pass, by address; the model's own is left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def test_sizes_for_people() -> None:
    shown = [shown_bytes(size) for size in (0, 1000, 1024, 3 * 2**19, 5 * 2**30)]
    assert shown == ["0 bytes", "1000 bytes", "1 KiB", "1.5 MiB", "5 GiB"]


def test_some_memory_is_free() -> None:
    assert free_memory(tiny_model()) > 2**20


def test_not_all_free_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loki.kva.fast.memory._free_on", lambda _device: 1000)
    assert 500 <= free_memory(tiny_model()) <= 900


@pytest.mark.parametrize("own_prefix", [True, False])
def test_lower_layers_and_longer_prompts_cost_more(own_prefix: bool) -> None:
    short, long = (MemoryCost.of(tiny_model(), length, own_prefix=own_prefix) for length in (10, 100))
    assert long.prompt == 10 * short.prompt
    costs = [long.point(PathPoint(layer, 0.0, 0.0)) for layer in range(3)]
    assert costs == sorted(costs, reverse=True)
    assert (long.point(PathPoint(0, 0.0, 0.0)) > short.point(PathPoint(0, 0.0, 0.0))) == own_prefix


@pytest.mark.parametrize("definition", ["captum", "paper"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_estimate_of_the_passes_is_what_autograd_keeps(family: str, definition: str) -> None:
    model, settings = tiny_model(family, **SIZES), AttributionSettings(definition=definition, engine="fast")
    with FastAttributor(model, settings) as attributor:
        attributor.examine()
        with kept_for_backward(model) as kept:
            attributor.attribute([PROMPT], [None])
    last_only = definition == "paper"
    cost = MemoryCost.of(model, len(PROMPT), own_prefix=not last_only)
    path = IntegrationPath.of(integration_rule(settings.ig_method, settings.steps), 6, last_position_only=last_only)
    original = cost.layers * cost.activations
    estimate = cost.prompt + original + sum(cost.point(point) for point in path.points)
    assert LEAST < estimate / sum(size for size, _ in kept.values()) < MOST


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_estimate_of_a_sensitivity_is_what_autograd_keeps(family: str) -> None:
    model = tiny_model(family, **SIZES)
    with make_attributor(model, AttributionSettings(definition="sensitivity")) as attributor:
        assert isinstance(attributor, SensitivityAttributor)
        with kept_for_backward(model) as kept:
            attributor.attribute([PROMPT], [None])
        estimate = attributor._memory([PROMPT])
    assert LEAST < estimate / sum(size for size, _ in kept.values()) < MOST
