"""Learning a task until enough of its answers are right."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.metrics.accuracy import Question, encode_question
from loki.metrics.divergence import kl_of_logits


@dataclass(frozen=True)
class Learned:
    """How a training went.

    Attributes:
        steps: number of updates.
        accuracy: part of the answers that are exactly right after them.
        seconds: of wall time.
        losses: loss of the answers' tokens before every update and after the last one, in nats.
        accuracies: part of the answers right, at the same points.
    """

    steps: int
    accuracy: float
    seconds: float
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


class Keep:
    """A term of the loss on texts, a few of them in every step: weight * KL(base || model), or the loss of the texts.

    Args:
        base: the model before; None takes the loss of the texts, so that they are replayed.
        windows: token ids of texts `[windows, T]`.
        weight: of the term.
        per_step: texts in every step, in turn.
    """

    def __init__(self, base: PreTrainedModel | None, windows: torch.Tensor, weight: float, per_step: int = 8) -> None:
        self.base, self.windows, self.weight, self.per_step = base, windows, weight, per_step

    def term(self, model: nn.Module, step: int) -> torch.Tensor:
        """The term of a step."""
        chosen = (torch.arange(self.per_step) + step * self.per_step) % len(self.windows)
        ids = self.windows[chosen].to(next(model.parameters()).device)
        after = model(input_ids=ids, use_cache=False).logits
        if self.base is None:
            return self.weight * nn.functional.cross_entropy(after[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        with torch.no_grad():
            before = self.base(input_ids=ids, use_cache=False).logits
        return self.weight * kl_of_logits(before, after, torch.ones_like(ids, dtype=torch.bool))


def learn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    *,
    rate: float,
    enough: float,
    max_steps: int,
    autocast: bool,
    terms: Sequence[Keep] = (),
    dft: bool = False,
) -> Learned:
    """Train on all questions as one batch until enough are right: AdamW without weight decay, gradients cut at 1.

    Args:
        model: some of its parameters are trainable; those that are not, stay.
        tokenizer: its tokenizer.
        questions: what to learn.
        rate: learning rate, the same in every step.
        enough: stop at the first step at which this part of the answers is exactly right.
        max_steps: stop here at the latest.
        autocast: compute in bfloat16 where PyTorch's autocast does.
        terms: further terms of the loss.
        dft: weigh every token's loss by its probability, which is not differentiated.
    """
    device = next(model.parameters()).device
    input_ids, attended, labels, kept = (tensor.to(device) for tensor in _left_padded(tokenizer, questions))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    losses, accuracies = [], []
    model.train()
    started = time.perf_counter()
    for step in range(max_steps + 1):
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            output = model(input_ids=input_ids, attention_mask=attended, use_cache=False, logits_to_keep=kept)
        logits = output.logits.float()
        per_token = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = per_token.sum() / (labels != -100).sum()
        right = (logits.detach().argmax(-1) == labels) | (labels == -100)
        losses.append(float(loss.detach()))
        accuracies.append(float(right.all(dim=1).float().mean()))
        if accuracies[-1] >= enough or step == max_steps or not loss.isfinite():
            break
        optimizer.zero_grad()
        if dft:
            loss = (per_token * (-per_token.detach()).exp()).sum() / (labels != -100).sum()
        loss.backward()
        for term in terms:
            term.term(model, step).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return Learned(step, accuracies[-1], time.perf_counter() - started, losses, accuracies)


def _left_padded(tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> tuple[torch.Tensor, ...]:
    """Ids `[B, T]` and which of them count; labels `[B, A]` of the last tokens, and where `[A]` their logits stand.

    With all answers at the end, the logits before the first are not computed: a large vocabulary makes them dear.
    """
    encoded = [encode_question(tokenizer, question) for question in questions]
    length, answers = max(len(ids) for ids, _ in encoded), max(len(ids) - prompt for ids, prompt in encoded)
    input_ids = torch.zeros(len(encoded), length, dtype=torch.long)
    attended, labels = torch.zeros_like(input_ids), torch.full((len(encoded), answers), -100)
    for row, (ids, prompt) in enumerate(encoded):
        input_ids[row, length - len(ids) :] = torch.tensor(ids)
        attended[row, length - len(ids) :] = 1
        labels[row, answers - (len(ids) - prompt) :] = torch.tensor(ids[prompt:])
    return input_ids, attended, labels, torch.arange(length - answers - 1, length - 1)
