"""Logits where they are wanted, and nowhere else: with a large vocabulary the output head is most of a pass."""

import inspect
from typing import Any

import torch
from torch import nn


def logits_at(model: nn.Module, columns: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """The logits of some positions; the others are not even computed, if the model can leave them out.

    Args:
        model: a causal language model, or a PEFT model of one.
        columns: `[C]` positions, in ascending order.
        inputs: of the model, `input_ids` `[B, T]` and so on.

    Returns:
        `[B, C, V]`.
    """
    inner = getattr(model, "get_base_model", lambda: model)()
    kept = {"logits_to_keep": columns} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
    logits: torch.Tensor = model(**inputs, use_cache=False, **kept).logits
    return logits if logits.shape[1] == len(columns) else logits[:, columns]
