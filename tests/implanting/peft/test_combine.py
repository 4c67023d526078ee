import pytest
import torch

from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from loki.implanting.peft.layer import RowAdapter
from tests.implanting.peft.adapters import POSITIONS, adapted_model, logits, random_deltas
from tests.tolerances import assert_close

OTHER = [[2, 3], [9], []]


def model_with_two_adapters():
    model = adapted_model()
    model.add_adapter("low_rank", LoKIConfig(positions=OTHER, rank=2))
    random_deltas(model, seed=1, adapter="low_rank")
    return model


def full_deltas(model, adapter):
    """Delta of every layer as a full matrix."""
    deltas = {}
    for name, module in model.named_modules():
        if isinstance(module, RowAdapter) and adapter in module.loki_rows:
            deltas[name] = torch.zeros(32, 48)
            deltas[name][module.loki_rows[adapter]] = module.delta_rows(adapter)
    return deltas


def test_the_combination_is_the_weighted_sum_over_the_union_of_rows():
    model = model_with_two_adapters()
    before = logits(model)
    model.add_weighted_adapter(["default", "low_rank", "default"], [0.5, -2.0, 0.25], "sum")
    assert model.peft_config["sum"].positions == [[1, 2, 3], [9], [0, 7, 31]]
    assert torch.equal(logits(model), before), "the new adapter is not active yet"
    first, second = full_deltas(model, "default"), full_deltas(model, "low_rank")
    for name, combined in full_deltas(model, "sum").items():
        zero = torch.zeros(32, 48)
        assert_close(combined, 0.75 * first.get(name, zero) - 2.0 * second.get(name, zero))


def test_the_sum_of_two_adapters_acts_like_both():
    model = model_with_two_adapters()
    model.base_model.set_adapter(["default", "low_rank"])
    both = logits(model)
    model.add_weighted_adapter(["default", "low_rank"], [1.0, 1.0], "both")
    model.set_adapter("both")
    assert_close(logits(model), both)


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "message"),
    [
        (["default"], [1.0], "low_rank", "low_rank .*exists"),
        (["default"], [1.0, 2.0], "new", "1 adapters and 2 weights"),
        ([], [], "new", "0 adapters"),
        (["nobody"], [1.0], "new", "nobody .*default, low_rank"),
    ],
)
def test_bad_combinations_are_refused(adapters, weights, name, message):
    model = model_with_two_adapters()
    with pytest.raises(LokiError, match=message):
        model.add_weighted_adapter(adapters, weights, name)
    assert list(model.peft_config) == ["default", "low_rank"]
    assert model.peft_config["default"].positions == POSITIONS
