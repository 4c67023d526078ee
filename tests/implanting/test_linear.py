"""LoKILinear: the original until trained, and then only in its active rows."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from loki.errors import LokiError
from loki.implanting.linear import LoKILinear
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make(
    inputs: int = 7,
    outputs: int = 5,
    rows: tuple[int, ...] = (3, 0),
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Linear, LoKILinear]:
    torch.manual_seed(0)
    original = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    return original, LoKILinear(copy.deepcopy(original), list(rows))


def train(module: nn.Module, x: torch.Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(x).float().square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 3, 2)])
def test_output_is_the_originals_until_trained(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    original, split = make(bias=bias, dtype=dtype)
    x = torch.randn(*shape, 7, dtype=dtype)
    assert torch.equal(split(x), original(x))


@given(
    outputs=st.integers(1, 8),
    data=st.data(),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=30, deadline=None)
def test_untouched_rows_stay_bit_identical(outputs: int, data: st.DataObject, bias: bool, dtype: torch.dtype) -> None:
    rows = data.draw(st.lists(st.integers(0, outputs - 1), min_size=1, unique=True))
    original, split = make(outputs=outputs, rows=tuple(rows), bias=bias, dtype=dtype)
    train(split, torch.randn(6, 7, dtype=dtype))
    saved = split.state_dict()
    frozen = [row for row in range(outputs) if row not in rows]
    assert torch.equal(saved["weight"][frozen], original.weight[frozen])
    assert (saved["weight"][rows] != original.weight[rows]).any()
    if bias:
        assert torch.equal(saved["bias"][frozen], original.bias[frozen])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_gradients_are_the_full_linears_rows(bias: bool, shape: tuple[int, ...]) -> None:
    original, split = make(bias=bias)
    x = torch.randn(*shape, 7, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    original(x).pow(3).sum().backward()
    split(y).pow(3).sum().backward()
    assert_close(y.grad, x.grad)
    assert_close(split.active_weight.grad, original.weight.grad[[0, 3]])
    assert split.weight.grad is None
    if bias:
        assert_close(split.active_bias.grad, original.bias.grad[[0, 3]])


@pytest.mark.parametrize("bias", [True, False])
def test_training_equals_training_the_full_linears_rows(bias: bool) -> None:
    original, split = make(bias=bias, dtype=torch.float64)
    x = torch.randn(6, 7, dtype=torch.float64)
    keep = torch.zeros(5, dtype=torch.float64)
    keep[[0, 3]] = 1
    original.weight.register_hook(lambda grad: grad * keep[:, None])
    if bias:
        original.bias.register_hook(lambda grad: grad * keep)
    for module in (original, split):
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
        for _ in range(5):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    assert_close(split.merged_weight(), original.weight.detach())


@pytest.mark.parametrize("kind", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_every_kind_of_optimizer_step_is_seen(kind: dict[str, bool]) -> None:
    _, split = make()
    x = torch.randn(6, 7)
    optimizer = torch.optim.AdamW([split.active_weight, split.active_bias], lr=0.05, **kind)
    for _ in range(3):
        optimizer.zero_grad()
        split(x).square().sum().backward()
        optimizer.step()
        assert torch.equal(split(x), nn.functional.linear(x, split.merged_weight(), split.merged_bias()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_base_is_shown_and_hidden_again(bias: bool, dtype: torch.dtype) -> None:
    original, split = make(bias=bias, dtype=dtype)
    x = torch.randn(4, 7, dtype=dtype)
    with pytest.raises(LokiError, match="remember_base"):
        split.show_base(True)
    split.remember_base()
    train(split, x)
    trained = split(x)
    split.show_base(True)
    assert torch.equal(split(x), original(x))
    split.show_base(False)
    assert torch.equal(split(x), trained)
    assert not torch.equal(trained, original(x))


@pytest.mark.parametrize("bias", [True, False])
def test_split_takes_the_rows_of_what_was_written(bias: bool) -> None:
    _, split = make(bias=bias)
    other = nn.Linear(7, 5, bias=bias)
    split.weight.data.copy_(other.weight.data)
    if split.bias is not None:
        split.bias.data.copy_(other.bias.data)
    split.split()
    x = torch.randn(4, 7)
    assert torch.equal(split(x), other(x))


def test_state_dict_is_an_ordinary_linears() -> None:
    original, split = make()
    train(split, torch.randn(6, 7))
    x = torch.randn(4, 7)
    plain = nn.Linear(7, 5)
    plain.load_state_dict(split.state_dict())
    assert torch.equal(plain(x), split(x))
    split.load_state_dict(original.state_dict())
    assert torch.equal(split(x), original(x))
    assert torch.equal(split.active_weight, original.weight[[0, 3]])


def test_gradients_accumulate_over_forwards() -> None:
    _, split = make()
    x = torch.randn(6, 7)
    (split(x[:3]).square().sum() + split(x[3:]).square().sum()).backward()
    accumulated = split.active_weight.grad.clone()
    split.zero_grad()
    split(x).square().sum().backward()
    assert_close(accumulated, split.active_weight.grad)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    _, split = make()
    x = torch.randn(6, 7, requires_grad=True)
    split(x).square().sum().backward()
    expected = split.active_weight.grad.clone()
    split.zero_grad()
    checkpoint(split, x, use_reentrant=use_reentrant).square().sum().backward()
    assert torch.equal(split.active_weight.grad, expected)


def test_float32_rows_on_a_bfloat16_weight() -> None:
    original, split = make(dtype=torch.bfloat16)
    split.active_weight.data = split.active_weight.data.float()
    split.active_bias.data = split.active_bias.data.float()
    x = torch.randn(6, 7, dtype=torch.bfloat16)
    assert torch.equal(split(x), original(x))
    train(split, x)
    assert split.active_weight.grad.dtype == torch.float32
    assert split(x).dtype == torch.bfloat16
    assert split.state_dict()["weight"].dtype == torch.bfloat16


def test_autocast_computes_as_a_linear_does() -> None:
    original, split = make()
    x = torch.randn(6, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(split(x), original(x))
        assert split(x).dtype == torch.bfloat16
        split(x).float().square().sum().backward()
    assert split.active_weight.grad.dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
def test_the_path_for_shared_weights_agrees(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, split = make(bias=bias)
    train(split, torch.randn(6, 7))
    split.zero_grad()
    x = torch.randn(4, 7)
    expected = split(x)
    expected.square().sum().backward()
    gradient = split.active_weight.grad.clone()
    split.zero_grad()
    monkeypatch.setattr(LoKILinear, "_weight_is_ours", lambda _: False)
    assert_close(split(x).detach(), expected.detach())
    split(x).square().sum().backward()
    assert_close(split.active_weight.grad, gradient)


def test_copies_train_apart() -> None:
    _, split = make()
    x = torch.randn(6, 7)
    split(x)
    buffer = io.BytesIO()
    torch.save(split, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(split), torch.load(buffer, weights_only=False)):
        before = split(x).detach()
        train(twin, x)
        assert torch.equal(split(x), before)
        assert not torch.equal(twin(x), before)


def test_backward_keeps_only_the_input() -> None:
    _, split = make(inputs=64, outputs=32, rows=(1, 2, 3), bias=False)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        x = torch.randn(10, 64, requires_grad=True)
        split(x)
    addresses = {tensor.data_ptr() for tensor in saved}
    assert addresses == {x.data_ptr(), split.weight.data_ptr(), split.rows.data_ptr()}


@pytest.mark.parametrize(("rows", "message"), [((0, 5), "row 5, but"), ((-1,), "holds -1"), ((1, 1), "more than once")])
def test_rows_that_are_none(rows: tuple[int, ...], message: str) -> None:
    with pytest.raises(LokiError, match=f"target_pos: .*{message}"):
        make(rows=rows)


def test_no_active_row() -> None:
    original, split = make(rows=())
    x = torch.randn(2, 7)
    assert torch.equal(split(x), original(x))
