"""ProtectedLinear: rows change along the given input directions, and along no others."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from loki.errors import LokiError
from loki.implanting.directions import DIRECTIONS_FILE, digest, read_directions, write_directions
from loki.implanting.linear import LoKILinear
from loki.implanting.protected import ProtectedLinear
from tests.tolerances import assert_close

ROWS = [3, 0]


def orthonormal(blocks: int, size: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(blocks, size, size, generator=generator, dtype=torch.float64)).Q[..., :count]


def make(
    directions: torch.Tensor, bias: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[nn.Linear, ProtectedLinear]:
    torch.manual_seed(0)
    original = nn.Linear(directions.shape[0] * directions.shape[1], 5, bias=bias, dtype=dtype)
    return original, ProtectedLinear(LoKILinear(copy.deepcopy(original), ROWS), directions.to(dtype))


def train(module: nn.Module, x: torch.Tensor, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (module(x).to(torch.float64) - 1).square().sum().backward()
        optimizer.step()


@given(blocks=st.integers(1, 3), size=st.integers(2, 6), share=st.integers(1, 5), bias=st.booleans())
def test_protected_inputs_give_the_same_output(blocks: int, size: int, share: int, bias: bool) -> None:
    count = min(share, size - 1)
    directions = orthonormal(blocks, size, count)
    original, layer = make(directions, bias=bias)
    train(layer, torch.randn(9, blocks * size, dtype=torch.float64))
    whole = torch.block_diag(*directions)  # [inputs, blocks * count]
    x = torch.randn(20, blocks * size, dtype=torch.float64)
    protected = x - x @ whole @ whole.T
    assert_close(layer(protected), original(protected))
    # And along the others it has learnt something.
    assert (layer(x) - original(x))[:, ROWS].abs().max() > 1e-3
    unselected = [row for row in range(5) if row not in ROWS]
    assert torch.equal(layer.merged_weight()[unselected], original.weight[unselected])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_training_is_that_of_coefficients_on_projected_inputs(dtype: torch.dtype) -> None:
    directions = orthonormal(2, 4, 2)
    original, layer = make(directions, dtype=dtype)
    x = torch.randn(9, 8, dtype=dtype)
    assert torch.equal(layer(x), original(x))
    whole = torch.block_diag(*directions)
    coefficients = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([coefficients], lr=0.05)
    reference = copy.deepcopy(original).double().requires_grad_(False)
    rows = torch.tensor(sorted(ROWS))
    for _ in range(4):
        optimizer.zero_grad()
        output = reference(x.double()).index_add(-1, rows, x.double() @ whole @ coefficients.T)
        (output - 1).square().sum().backward()
        optimizer.step()
    train(layer, x)
    merged = reference.weight.index_add(0, rows, coefficients.detach() @ whole.T)
    assert_close(layer.merged_weight().double(), merged, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coefficients_are_those_of_the_directions_in_order(dtype: torch.dtype) -> None:
    directions = orthonormal(3, 4, 2)
    original, layer = make(directions, dtype=dtype)
    assert layer.active_coefficients.dtype == torch.float32
    with torch.no_grad():
        layer.active_coefficients.copy_(torch.arange(12.0).reshape(2, 6) / 100)
    change = layer.active_coefficients.detach() @ torch.block_diag(*directions.to(dtype)).float().T
    assert_close(layer.active_rows()[0].detach(), original.weight.detach()[sorted(ROWS)].float() + change)


def test_split_starts_anew_from_the_weight() -> None:
    _, layer = make(orthonormal(2, 4, 2))
    train(layer, torch.randn(9, 8, dtype=torch.float64))
    written = torch.randn_like(layer.weight)
    layer.weight.data.copy_(written)
    layer.split()
    assert not layer.active_coefficients.any()
    assert torch.equal(layer.merged_weight(), written)


def test_state_dict_is_an_ordinary_linears_and_starts_anew_where_it_is_loaded() -> None:
    original, layer = make(orthonormal(1, 6, 3))
    x = torch.randn(9, 6, dtype=torch.float64)
    train(layer, x)
    plain = nn.Linear(6, 5, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain(x), layer(x))
    _, again = make(orthonormal(1, 6, 3))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    assert not again.active_coefficients.any()
    assert torch.equal(layer.state_dict()["bias"], original.bias)


def test_autocast_forms_the_rows_in_full_precision() -> None:
    original, layer = make(orthonormal(1, 6, 3), dtype=torch.float32)
    with torch.no_grad():
        layer.active_coefficients.normal_()
    x = torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        expected = nn.functional.linear(x, layer.merged_weight(), original.bias)
    assert torch.equal(output, expected)
    assert_close(layer.merged_weight()[sorted(ROWS)], layer.active_rows()[0].detach())


def test_casting_the_model_leaves_the_directions_alone() -> None:
    directions = orthonormal(1, 6, 3).float()
    _, layer = make(directions, dtype=torch.float32)
    assert torch.equal(layer.to(torch.bfloat16).directions, directions)


def test_directions_of_another_width_are_refused() -> None:
    with pytest.raises(LokiError, match=r"6 inputs .* 8"):
        ProtectedLinear(LoKILinear(nn.Linear(8, 5), ROWS), orthonormal(1, 6, 3))


def test_directions_files(tmp_path: Path) -> None:
    directions = {0: orthonormal(1, 6, 3).float(), 2: orthonormal(2, 4, 1).float()}
    write_directions(tmp_path, directions)
    file = tmp_path / DIRECTIONS_FILE
    read = read_directions(file, digest(directions))
    assert read.keys() == directions.keys()
    assert all(torch.equal(read[layer], directions[layer]) for layer in directions)
    with pytest.raises(LokiError, match="other directions"):
        read_directions(file, digest({0: directions[0]}))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(LokiError, match="truncated or damaged"):
        read_directions(file)
    with pytest.raises(LokiError, match="is missing"):
        read_directions(tmp_path / "nothing")
