"""The Kullback-Leibler divergence of two models' predictions, which forgetting is measured by."""

import torch
from torch import nn


def kl_of_logits(base: torch.Tensor, model: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """KL(base || model) in nats per token.

    Args:
        base: logits `[B, T, V]` of the model before.
        model: logits `[B, T, V]` of the model after; it gets the gradient.
        counted: `[B, T]`; which tokens count. Without any the result is 0.
    """
    if not counted.any():
        return 0.0 * model.sum()
    before = base[counted].float().log_softmax(-1)
    after = model[counted].float().log_softmax(-1)
    return nn.functional.kl_div(after, before, reduction="batchmean", log_target=True)
