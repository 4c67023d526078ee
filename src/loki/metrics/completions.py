"""What a model makes of examples: the loss of their answers, and whether greedy decoding gives them exactly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.metrics.modes import evaluating
from loki.models.architectures import text_config
from loki.models.logits import logits_at

_LOGITS_BYTES = 2**28  # of a batch, where logits are wanted
_TOKENS = 2**12  # of a batch, padding included


@dataclass(frozen=True)
class CompletionScores:
    """One entry per example.

    Attributes:
        nll: `[N]` float64; negative log-likelihood of the answer in nats, summed over its tokens.
        tokens: `[N]`; how many tokens that are.
        right: `[N]` bool; whether greedy decoding gives exactly these tokens.
    """

    nll: torch.Tensor
    tokens: torch.Tensor
    right: torch.Tensor

    @property
    def loss(self) -> float:
        """Mean per token of all answers, in nats."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        """Share of the answers that are exactly right."""
        return float(self.right.double().mean())


@torch.no_grad()
def completion_scores(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]
) -> CompletionScores:
    """Loss and exact match of every example's answer, from one forward pass.

    An answer is what greedy decoding gives exactly when each of its tokens is the model's argmax given those before.

    Args:
        model: a causal language model; it is left in the mode it came in.
        ids: token ids of every example, prompt and answer.
        masks: of each token 1 if it is part of the answer, else 0; see `loki.data.fitting.TrainingData`. The first
            token of an example cannot be predicted and is passed over.

    Raises:
        LokiError: if there are no examples, or one has no answer that can be predicted.
    """
    if not ids:
        raise LokiError("there are no examples to measure: give at least one")
    tokens = torch.tensor([sum(mask[1:]) for mask in masks])
    if not tokens.all():
        raise LokiError(f"example {int((tokens == 0).nonzero()[0]) + 1} has no answer that can be predicted")
    nll = torch.zeros(len(ids), dtype=torch.float64)
    right = torch.zeros(len(ids), dtype=torch.bool)
    with evaluating(model):
        for batch in _batches(masks, text_config(model.config).vocab_size):
            # With causal attention, padding on the right cannot change what stands before it.
            input_ids = torch.zeros(len(batch), max(len(ids[index]) for index in batch), dtype=torch.long)
            wanted = torch.zeros_like(input_ids, dtype=torch.bool)
            for row, index in enumerate(batch):
                input_ids[row, : len(ids[index])] = torch.tensor(ids[index])
                wanted[row, : len(ids[index])] = torch.tensor(masks[index], dtype=torch.bool)
            columns = wanted[:, 1:].any(0).nonzero().flatten()
            logits = logits_at(model, columns.to(model.device), input_ids=input_ids.to(model.device))
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            targets, wanted = input_ids[:, columns + 1].to(logits.device), wanted[:, columns + 1]
            per_token = -logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1).cpu().double()
            nll[batch] = torch.where(wanted, per_token, 0.0).sum(-1)
            right[batch] = ((logits.argmax(-1) == targets).cpu() | ~wanted).all(-1)
    return CompletionScores(nll, tokens, right)


def _batches(masks: Sequence[Sequence[int]], vocabulary: int) -> Iterator[list[int]]:
    """Indices of examples of like length, longest first, as many as `_LOGITS_BYTES` and `_TOKENS` allow."""
    batch: list[int] = []
    columns: set[int] = set()
    for index in sorted(range(len(masks)), key=lambda index: len(masks[index]), reverse=True):
        own = {position for position, wanted in enumerate(masks[index]) if wanted and position}
        size = len(batch) + 1
        logits, tokens = vocabulary * len(columns | own) * size, len(masks[(batch or [index])[0]]) * size
        if batch and (4 * logits > _LOGITS_BYTES or tokens > _TOKENS):
            yield batch
            batch, columns = [], set()
        batch, columns = [*batch, index], columns | own
    if batch:
        yield batch
