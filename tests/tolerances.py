"""The one table of tolerances. Whole tensors are compared by relative error: |a - b| / |b| in the 2-norm."""

import torch

RELATIVE_ERROR = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 5e-3,
}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| over the whole tensor."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    actual, expected = actual.detach(), expected.detach()
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-300))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Assert that two tensors agree to the table's tolerance for `dtype` (default: that of `actual`)."""
    bound = RELATIVE_ERROR[dtype or actual.dtype]
    error = relative_error(actual, expected)
    assert error <= bound, f"relative error {error:.3g} exceeds {bound:.3g}"
