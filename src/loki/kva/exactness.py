"""The fast engine's checks of itself: it computes a model exactly, or not at all."""

import torch
from torch import Tensor

from loki.errors import LokiError

_LOGIT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 0.1


class NotExactError(LokiError):
    """The fast engine cannot compute this model exactly."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the fast engine is not exact on this model ({reason}): use the engine captum or auto")


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
    expected = expected.float().to(actual.device)
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    error = float(((actual.float() - expected).norm(dim=-1) / spread.clamp_min(1e-30)).max())
    if not error <= _LOGIT_TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE):
        raise NotExactError(f"{what} differ by {error:.1%}")
