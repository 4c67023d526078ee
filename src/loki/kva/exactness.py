"""The fast engine's checks of itself: it computes a model exactly, or not at all."""

import torch
from torch import Tensor

from loki.errors import LokiError

_LOGIT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 0.1
# Equal to the last bit, but for experts, whose kernels may depend on how many tokens come to them.
_UNMOVED_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
_LOW_PRECISION_UNMOVED_TOLERANCE = 2e-3


class NotExactError(LokiError):
    """The fast engine cannot compute this model exactly.

    Args:
        reason: why not.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the fast engine is not exact on this model ({reason}): use the engine captum or auto")
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.reason,)


class NotExactWarning(UserWarning):
    """Captum does what the fast engine cannot."""


def check_same_logits(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    """Check that two computations of the same logits `[B, V]` agree, prompt by prompt.

    Args:
        actual: logits of the engine's sweep.
        expected: logits of the model's own forward pass.
        dtype: the model's dtype, which sets the tolerance on |actual - expected| relative to the logits' spread.
        what: names the comparison in the error.

    Raises:
        NotExactError: if they differ, or are not finite.
    """
    error = _relative_error(actual, expected)
    if not error <= _LOGIT_TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE):
        raise NotExactError(f"{what} differ by {error:.1%}")


def check_unmoved_logits(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Check that exchanging tokens that should not matter has left logits `[B, V]` where they were.

    Raises:
        NotExactError: if it has not.
    """
    error = _relative_error(actual, expected)
    if not error <= _UNMOVED_TOLERANCE.get(dtype, _LOW_PRECISION_UNMOVED_TOLERANCE):
        raise NotExactError(f"a layer mixes tokens outside its attention, which moves the logits by {error:.2g}")


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| relative to the spread of `expected`, of the worst prompt."""
    expected = expected.float().to(actual.device)
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    return float(((actual.float() - expected).norm(dim=-1) / spread.clamp_min(1e-30)).max())
