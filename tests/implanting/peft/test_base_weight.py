import pytest
import torch
from torch import nn

from loki.implanting.peft.base_weight import base_fingerprint, plain_weight, same_base, sum_fingerprints

WEIGHT = torch.randn(16, 100, generator=torch.Generator().manual_seed(0))


def test_ordinary_weights_are_plain():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        layer = nn.Linear(5, 3, dtype=dtype)
        assert plain_weight(layer).data_ptr() == layer.weight.data_ptr()


def test_packed_integer_float8_and_meta_weights_are_not_plain():
    def linear(weight: torch.Tensor) -> nn.Linear:
        layer = nn.Linear(4, 2)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer

    packed_4bit = torch.zeros(4, 1, dtype=torch.bfloat16)
    for weight in (packed_4bit, torch.zeros(2, 4, dtype=torch.int8), torch.zeros(2, 4).to(torch.float8_e4m3fn)):
        assert plain_weight(linear(weight)) is None
    assert plain_weight(nn.Linear(4, 2, device="meta")) is None
    assert plain_weight(nn.Conv1d(4, 2, 1)) is None


def test_disjoint_rows_add_up():
    one = base_fingerprint([(0, [1, 5], WEIGHT), (1, [2], WEIGHT)])
    other = base_fingerprint([(0, [0], WEIGHT), (1, [3, 9], WEIGHT)])
    assert sum_fingerprints([one, other]) == base_fingerprint([(1, [2, 3, 9], WEIGHT), (0, [0, 1, 5], WEIGHT)])
    assert sum_fingerprints([one, None]) is None
    assert sum_fingerprints([one, "float16:00"]) is None


@pytest.mark.parametrize("change", ["value", "row", "layer"])
def test_another_value_row_or_layer_is_another_base(change):
    changed = WEIGHT.clone()
    changed[5, 3] += 0.1
    expected = base_fingerprint([(0, [5], WEIGHT)])
    found = {
        "value": base_fingerprint([(0, [5], changed)]),
        "row": base_fingerprint([(0, [6], WEIGHT)]),
        "layer": base_fingerprint([(1, [5], WEIGHT)]),
    }[change]
    assert not same_base(found, expected)


def test_precisions_of_one_base_agree_and_float16_is_given_the_benefit_of_the_doubt():
    rows = [0, 15]
    single, brain, half = (
        base_fingerprint([(0, rows, WEIGHT.to(dtype))]) for dtype in (torch.float32, torch.bfloat16, torch.float16)
    )
    assert same_base(single, brain)
    assert same_base(brain, base_fingerprint([(0, rows, WEIGHT.to(torch.bfloat16).float())]))
    assert same_base(single, half)
    assert not same_base(half, base_fingerprint([(0, rows, 2 * WEIGHT.half())]))
