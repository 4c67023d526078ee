"""The fast engine's checks of itself: it computes a model exactly, or not at all."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.attributor import NotExactError
from loki.kva.fast.attention import Heads, attention_computed_by, causal_attention
from loki.kva.fast.layers import Layers
from loki.kva.fast.record import last_logits
from loki.kva.hooks import input_device, vocab_size
from loki.kva.prompts import PromptBatch

_LOGIT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 0.1
# Equal to the last bit, but for experts, whose kernels may depend on how many tokens come to them.
_UNMOVED_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
_LOW_PRECISION_UNMOVED_TOLERANCE = 2e-3


def check_same_logits(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    """Check that two computations of the same logits `[B, V]` agree, prompt by prompt.

    Args:
        actual: logits of the engine's pass.
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


@torch.no_grad()
def check_attention_alone_mixes(model: PreTrainedModel, layers: Layers, prompt: list[int]) -> None:
    """Check that the earlier tokens of a prompt reach the last position through attention only.

    Args:
        model: with its attention replaced.
        layers: its decoder layers.
        prompt: token ids, at least two.

    Raises:
        NotExactError: if they reach it in another way too.
    """
    outputs: dict[int, Tensor] = {}

    def attend(layer: int, heads: Heads) -> Tensor:
        if layer not in outputs:
            outputs[layer] = causal_attention(heads)
        return outputs[layer]

    tokens = vocab_size(model)
    others = [(token + tokens // 2) % tokens for token in prompt[:-1]]
    device = input_device(model)
    with attention_computed_by(attend, layers.layers):
        real, exchanged = (last_logits(model, PromptBatch.of([ids], device)) for ids in (prompt, [*others, prompt[-1]]))
    check_unmoved_logits(exchanged, real, model.dtype)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| relative to the spread of `expected`, of the worst prompt."""
    expected = expected.float().to(actual.device)
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    return float(((actual.float() - expected).norm(dim=-1) / spread.clamp_min(1e-30)).max())
