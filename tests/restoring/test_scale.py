"""Scaling goes from the base, to the last bit, to what was trained, and touches nothing but the selected rows."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loki import restore_loki_model
from loki.errors import LokiError
from loki.models.model_directory import ModelDirectory
from loki.restoring.scale import check_scale, scale_rows, scaled
from tests.restoring.test_adapter import save_adapter
from tests.restoring.test_restore import POSITIONS, trained
from tests.tiny_models import save_tiny_model
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.bfloat16]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_trained_model(tmp_path: Path, dtype: torch.dtype) -> None:
    base = save_tiny_model(tmp_path / "base", dtype=dtype)
    checkpoint = trained(tmp_path, base)
    restore_loki_model(checkpoint, tmp_path / "one")
    restore_loki_model(checkpoint, tmp_path / "one-again", scale=1.0, base_model=base)
    restore_loki_model(checkpoint, tmp_path / "zero", scale=0.0, allow_unchanged=True)
    restore_loki_model(checkpoint, tmp_path / "part", scale=0.3)
    before, after, part = weights(base), weights(tmp_path / "one"), weights(tmp_path / "part")
    for name, tensor in before.items():
        assert torch.equal(weights(tmp_path / "one-again")[name], after[name])
        assert torch.equal(weights(tmp_path / "zero")[name], tensor)
        expected = tensor.double() + 0.3 * (after[name].double() - tensor.double())
        assert_close(part[name].double(), expected, dtype)
        if "down_proj" not in name:
            assert torch.equal(part[name], tensor)
    rows = {f"model.layers.{layer}.mlp.down_proj.weight": rows for layer, rows in enumerate(POSITIONS)}
    for name, selected in rows.items():
        assert (after[name][selected] != before[name][selected]).any(dim=1).all()
        others = [row for row in range(len(before[name])) if row not in selected]
        assert torch.equal(part[name][others], before[name][others])


def test_a_model_that_is_stored_under_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_model(tmp_path / "base")
    checkpoint = trained(tmp_path, base)
    restore_loki_model(checkpoint, tmp_path / "expected", scale=0.3, base_model=base)
    file = checkpoint / "model.safetensors"
    renamed = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}  # of the inner model
    save_file(renamed, file, metadata={"format": "pt"})
    restore_loki_model(checkpoint, tmp_path / "part", scale=0.3, base_model=base)
    expected, found = weights(tmp_path / "expected"), weights(tmp_path / "part")
    assert not any(name.startswith("model.") for name in found)
    for name, tensor in expected.items():
        assert torch.equal(found[name.removeprefix("model.")], tensor)
    monkeypatch.setattr("loki.restoring.scale.names_in", lambda *_: None)
    with pytest.raises(LokiError, match="in other tensors"):
        restore_loki_model(checkpoint, tmp_path / "none", scale=0.3, base_model=base)


def test_rows_in_half_precision_are_rounded_once(tmp_path: Path) -> None:
    base = ModelDirectory(save_tiny_model(tmp_path / "base", dtype=torch.bfloat16))
    change = scale_rows(base, base.row_tensors, POSITIONS, 0.3)
    for (tensor,), rows in zip(base.row_tensors, POSITIONS, strict=True):
        before = base.checkpoint.tensor(tensor.name)
        after = before + torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).to(before)
        expected = after.clone()
        expected[rows] = (before.float() + 0.3 * (after.float() - before.float()))[rows].bfloat16()
        assert torch.equal(change(tensor.name, after.clone()), expected)


def test_a_base_that_was_converted(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    checkpoint = trained(tmp_path, base, torch.bfloat16)
    restore_loki_model(checkpoint, tmp_path / "zero", scale=0.0, allow_unchanged=True)
    zero = weights(tmp_path / "zero")
    assert all(torch.equal(zero[name], tensor.bfloat16()) for name, tensor in weights(base).items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [None, 2])
def test_an_adapter(tmp_path: Path, dtype: torch.dtype, rank: int | None) -> None:
    base = save_tiny_model(tmp_path / "base", dtype=dtype)
    save_adapter(base, tmp_path / "adapter", rank)
    for scale in (0.0, 0.3, 1.0):
        restore_loki_model(tmp_path / "adapter", tmp_path / f"{scale}", scale=scale, allow_unchanged=True)
    restore_loki_model(tmp_path / "adapter", tmp_path / "plain")
    before, after, part = weights(base), weights(tmp_path / "1.0"), weights(tmp_path / "0.3")
    for name, tensor in before.items():
        assert torch.equal(weights(tmp_path / "0.0")[name], tensor)
        assert torch.equal(weights(tmp_path / "plain")[name], after[name])
        assert_close(part[name].double(), tensor.double() + 0.3 * (after[name].double() - tensor.double()), dtype)


@given(scale=st.floats(0, 1), seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES))
def test_a_scaled_row_lies_between(scale: float, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(4, 6, generator=generator).to(dtype)
    change = torch.randn(4, 6, generator=generator)
    assert_close(scaled(change, scale, base).double(), base.double() + scale * change.double(), dtype)
    assert torch.equal(scaled(change, 0.0, base), base)


def test_scales_out_of_range(tmp_path: Path) -> None:
    for scale in (-0.1, 1.0001, float("nan"), float("inf")):
        with pytest.raises(LokiError, match=f"--scale {scale}"):
            check_scale(scale)
    with pytest.raises(LokiError, match=r"--scale 0 .*base"):
        restore_loki_model(tmp_path / "any", tmp_path / "out", scale=0.0)
    assert check_scale(0.0, allow_zero=True) == 0
