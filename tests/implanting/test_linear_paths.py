"""Where the weight is not the layer's own to write into, the active outputs are computed apart: compiled, offloaded."""

import copy

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from loki.implanting.linear import LoKILinear
from tests.tolerances import assert_close

ROWS = [0, 3]


def made(bias: bool = True) -> tuple[LoKILinear, nn.Linear, torch.Tensor]:
    """A layer whose active rows have moved, the ordinary Linear that it now is, and an input."""
    torch.manual_seed(0)
    original = nn.Linear(7, 5, bias=bias)
    layer = LoKILinear(copy.deepcopy(original), ROWS)
    with torch.no_grad():
        layer.active_weight.add_(torch.randn(2, 7))
        original.weight[ROWS] = layer.active_weight
        if layer.active_bias is not None:
            layer.active_bias.add_(1.0)
            original.bias[ROWS] = layer.active_bias
    return layer, original, torch.randn(4, 3, 7, requires_grad=True)


def test_compiled_it_computes_the_same_and_leaves_the_weight_alone() -> None:
    for bias in (True, False):
        layer, plain, x = made(bias)
        weight = layer.weight.detach().clone()
        output = torch.compile(layer, backend="eager", fullgraph=True)(x)
        expected = plain(x)
        assert_close(output.detach(), expected.detach())
        assert torch.equal(layer.weight, weight)
        assert not torch.equal(weight[ROWS], plain.weight[ROWS])
        (of_x,) = torch.autograd.grad(output.square().sum(), x, retain_graph=True)
        (expected_of_x,) = torch.autograd.grad(expected.square().sum(), x, retain_graph=True)
        assert_close(of_x, expected_of_x)
        (of_rows,) = torch.autograd.grad(output.square().sum(), layer.active_weight)
        (expected_of_rows,) = torch.autograd.grad(expected.square().sum(), plain.weight)
        assert_close(of_rows, expected_of_rows[ROWS])


def test_offloaded_it_computes_the_same_and_what_is_kept_elsewhere_stays() -> None:
    layer, plain, x = made()
    kept = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    before = {name: tensor.clone() for name, tensor in kept.items()}
    add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", offload=True, weights_map=kept))
    assert layer.weight.is_meta
    for _ in range(2):
        assert_close(layer(x).detach(), plain(x).detach())
    assert layer.weight.is_meta
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())
