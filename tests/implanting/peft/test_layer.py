import pytest
import torch
from torch import nn

from loki.errors import LokiError
from loki.implanting.peft.layer import RowAdapter
from tests.tolerances import assert_close

ROWS = [0, 4, 5]


def row_adapter(
    rank: int | None = None, dtype: torch.dtype = torch.float32, bias: bool = True, rows: list[int] = ROWS
) -> RowAdapter:
    torch.manual_seed(0)
    layer = RowAdapter(nn.Linear(7, 6, bias=bias, dtype=dtype).requires_grad_(False))
    layer.update_layer("default", rows, rank, inference_mode=False)
    return layer


def randomise(layer: RowAdapter) -> RowAdapter:
    for name, parameter in layer.named_parameters():
        if name.startswith("loki_"):
            parameter.data.normal_()
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7), (0, 7)])
def test_a_new_adapter_changes_nothing_for_any_shape_and_dtype(dtype, bias, rank, shape):
    layer = row_adapter(rank, dtype, bias)
    x = torch.randn(shape, dtype=dtype)
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("rank", [None, 2])
def test_only_the_selected_rows_change_by_the_delta(rank):
    layer = randomise(row_adapter(rank))
    x = torch.randn(3, 7)
    difference = (layer(x) - layer.base_layer(x)).detach()
    assert_close(difference[:, ROWS], x @ layer.delta_rows("default").T)
    others = [row for row in range(6) if row not in ROWS]
    assert difference[:, others].count_nonzero() == 0


def test_gradients_reach_the_selected_rows_exactly_as_in_a_plain_linear():
    layer = row_adapter()
    x = torch.randn(5, 7, requires_grad=True)
    layer(x).square().sum().backward()
    plain = nn.Linear(7, 6)
    plain.load_state_dict(layer.base_layer.state_dict())
    y = x.detach().clone().requires_grad_()
    plain(y).square().sum().backward()
    assert_close(layer.loki_delta["default"].weight.grad, plain.weight.grad[ROWS])
    assert_close(x.grad, y.grad)
    assert layer.base_layer.weight.grad is None


def test_float32_rows_compute_in_the_dtype_of_a_bfloat16_base():
    layer = randomise(row_adapter(dtype=torch.bfloat16))
    layer.loki_delta.float()
    x = torch.randn(4, 7, dtype=torch.bfloat16)
    output = layer(x)
    assert output.dtype == torch.bfloat16
    merged = layer.base_layer.weight.float()
    merged[ROWS] += layer.delta_rows("default")
    assert_close(output.detach(), nn.functional.linear(x.float(), merged, layer.base_layer.bias.float()))
    output.sum().backward()
    assert layer.loki_delta["default"].weight.grad.dtype == torch.float32


def test_a_bfloat16_merge_rounds_once_from_float32_and_unmerge_is_bit_exact():
    layer = randomise(row_adapter(dtype=torch.bfloat16))
    layer.loki_delta.float()
    before = layer.base_layer.weight.clone()
    exact = (before[ROWS].double() + layer.loki_delta["default"].weight.detach().double()).float()
    layer.merge()
    assert torch.equal(layer.base_layer.weight[ROWS], exact.to(torch.bfloat16))
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, before)


def test_overlapping_adapters_unmerge_bit_exactly():
    layer = row_adapter()
    layer.update_layer("other", [4, 2], None, inference_mode=False)
    layer.set_adapter(["default", "other"])
    randomise(layer)
    x, before = torch.randn(3, 7), layer.base_layer.weight.clone()
    output = layer(x)
    with pytest.warns(UserWarning, match="additionally merging"):
        layer.merge(adapter_names=["default"])
        layer.merge(adapter_names=["other"])
    assert_close(layer(x).detach(), output.detach())
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, before)
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_a_safe_merge_refuses_weights_that_are_not_finite_and_leaves_the_base_alone():
    layer = row_adapter()
    layer.loki_delta["default"].weight.data[1, 1] = torch.inf
    before = layer.base_layer.weight.clone()
    with pytest.raises(LokiError, match=r"adapter default .*finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged


def test_merging_into_a_quantised_weight_is_refused_with_advice():
    layer = randomise(row_adapter())
    layer.base_layer.weight = nn.Parameter(torch.zeros(6, 7, dtype=torch.int8), requires_grad=False)
    with pytest.raises(LokiError, match=r"quantised.*bfloat16"):
        layer.merge()
    assert not layer.merged


def test_a_merged_adapter_is_not_deleted():
    layer = randomise(row_adapter())
    layer.merge()
    with pytest.raises(LokiError, match=r"default .*unmerge_adapter"):
        layer.delete_adapter("default")
