"""What a model makes of examples: the loss of their answers, and whether greedy decoding gives them exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.metrics.modes import evaluating
from loki.models.architectures import text_config

_LOGITS_BYTES = 2**28


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
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]), reverse=True)
    with evaluating(model):
        while order:
            length = len(ids[order[0]])
            size = max(1, _LOGITS_BYTES // (4 * text_config(model.config).vocab_size * length))
            batch, order = order[:size], order[size:]
            # With causal attention, padding on the right cannot change what stands before it.
            input_ids = torch.zeros(len(batch), length, dtype=torch.long)
            wanted = torch.zeros(len(batch), length, dtype=torch.bool)
            for row, index in enumerate(batch):
                input_ids[row, : len(ids[index])] = torch.tensor(ids[index])
                wanted[row, : len(ids[index])] = torch.tensor(masks[index], dtype=torch.bool)
            logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits[:, :-1]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            targets, wanted = input_ids[:, 1:].to(logits.device), wanted[:, 1:]
            per_token = -logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1).cpu().double()
            nll[batch] = torch.where(wanted, per_token, 0.0).sum(-1)
            right[batch] = ((logits.argmax(-1) == targets).cpu() | ~wanted).all(-1)
    return CompletionScores(nll, tokens, right)
