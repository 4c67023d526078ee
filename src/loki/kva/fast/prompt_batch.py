"""Prompts of different lengths as one left-padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptBatch:
    """A batch of prompts, padded on the left so that every prompt's last token is at index T - 1.

    Attributes:
        input_ids: `[B, T]`.
        position_ids: `[B, T]`, position of every token in its own prompt; 0 on padding.
        attention_mask: `[B, T]`, 0 on padding; None where nothing is padded.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], device: torch.device) -> "PromptBatch":
        """The batch of `prompts` (token ids, not empty) on `device`."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        padding = torch.tensor([longest - len(prompt) for prompt in prompts])[:, None]
        positions = torch.arange(longest)[None] - padding
        mask = (positions >= 0).long().to(device) if bool(padding.any()) else None
        return cls(ids.to(device), positions.clamp_min(0).to(device), mask)

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def length(self) -> int:
        """T, the length of the longest prompt."""
        return self.input_ids.shape[1]

    def full_inputs(self) -> dict[str, Any]:
        """Model inputs of the whole prompts."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.attention_mask is not None:
            inputs |= {"attention_mask": self.attention_mask, "position_ids": self.position_ids}
        return inputs

    def last_token_inputs(self) -> dict[str, Any]:
        """Model inputs of the last token of every prompt alone, at its own position."""
        positions = self.position_ids[:, -1:]
        if self.attention_mask is None:
            positions = positions[:1]
        return {"input_ids": self.input_ids[:, -1:], "position_ids": positions, "use_cache": False}
