"""The prompts that an engine is given: checked, cut at the attributed position, and padded to a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loki.errors import LokiError


class PromptError(LokiError):
    """One prompt of a batch cannot be used.

    Args:
        index: which one.
        problem: why, and what to do.
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"prompt {index} of the batch: {problem}")
        self.index = index
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.index, self.problem)


def attributed_prompts(batch: Sequence[Sequence[int]], position: int, vocab_size: int) -> list[list[int]]:
    """The prompts up to and including the attributed position.

    Args:
        batch: token ids of each prompt.
        position: attributed position, counted like a Python index.
        vocab_size: number of rows of the model's embedding.

    Raises:
        LokiError: if a prompt is empty, does not have the position, or holds an id outside the vocabulary.
    """
    prompts = []
    for index, ids in enumerate(batch):
        prompt = up_to(ids, position, f"prompt {index} of the batch")
        for token in prompt:
            check_token(token, vocab_size, f"prompt {index} of the batch")
        prompts.append(prompt)
    return prompts


def up_to(ids: Sequence[int], position: int, origin: str) -> list[int]:
    """The token ids up to and including `position`, counted like a Python index.

    Raises:
        LokiError: if there is no such position.
    """
    end = position + len(ids) if position < 0 else position
    if not 0 <= end < len(ids):
        raise LokiError(f"{origin} has {len(ids)} tokens: position {position} is not in it")
    return list(ids[: end + 1])


def check_token(token: int, vocab_size: int, origin: str) -> None:
    """Check that `token` has a row in the model's embedding.

    Raises:
        LokiError: if it has none.
    """
    if not 0 <= token < vocab_size:
        raise LokiError(f"{origin}: token id {token} is outside the model's vocabulary of {vocab_size} tokens")


def checked_targets(targets: Sequence[int | None], count: int, vocab_size: int) -> list[int | None]:
    """The targets of `count` prompts.

    Raises:
        LokiError: if there are not `count` of them, or one is outside the vocabulary.
    """
    if len(targets) != count:
        raise LokiError(
            f"{len(targets)} targets were given for {count} prompts: give one per prompt (None: the argmax)"
        )
    for index, target in enumerate(targets):
        if target is not None:
            check_token(target, vocab_size, f"target {index} of the batch")
    return list(targets)


def without_padding(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """The token ids of every prompt of a tensor.

    Args:
        input_ids: `[B, T]`, or `[T]` for one prompt.
        attention_mask: of the same shape, 0 on padding; None means that nothing is padded.

    Raises:
        LokiError: if the tensor is not such a batch of token ids, or the mask has another shape.
    """
    if input_ids.dim() not in (1, 2) or input_ids.is_floating_point():
        raise LokiError(
            f"input_ids has shape {tuple(input_ids.shape)} and type {input_ids.dtype}: token ids are whole numbers, "
            "[prompts, positions]"
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise LokiError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}: "
            "give them equal shapes"
        )
    if input_ids.dim() == 1:
        input_ids, attention_mask = input_ids[None], attention_mask[None]
    return [ids[real.bool().to(ids.device)].tolist() for ids, real in zip(input_ids, attention_mask, strict=True)]


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
