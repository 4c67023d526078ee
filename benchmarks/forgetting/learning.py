"""Learning facts until enough of them are known."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from facts import Fact
from torch import nn
from transformers import PreTrainedTokenizerBase

from loki.metrics.accuracy import Question, collate, encode_question


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


def learn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: list[Fact],
    *,
    rate: float,
    enough: float,
    max_steps: int,
    autocast: bool,
) -> Learned:
    """Train on all facts as one batch until enough answers are right: AdamW without weight decay, gradients cut at 1.

    Args:
        model: some of its parameters are trainable; those that are not, stay.
        tokenizer: its tokenizer.
        facts: what to learn.
        rate: learning rate, the same in every step.
        enough: stop at the first step at which this part of the answers is exactly right.
        max_steps: stop here at the latest.
        autocast: compute in bfloat16 where PyTorch's autocast does.
    """
    questions = [Question("facts", fact.question, fact.answer) for fact in facts]
    encoded = [encode_question(tokenizer, question) for question in questions]
    input_ids, answers = collate(encoded, 0)
    # Logits before the first answer are of no use, and a large vocabulary makes them dear.
    first = min(length for _, length in encoded) - 1
    keep = torch.arange(first, input_ids.shape[1] - 1)
    labels = input_ids.masked_fill(~answers, -100)[:, first + 1 :]
    device = next(model.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    losses, accuracies = [], []
    model.train()
    started = time.perf_counter()
    for step in range(max_steps + 1):
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            output = model(input_ids=input_ids.to(device), use_cache=False, logits_to_keep=keep.to(device))
        logits = output.logits.float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten().to(device))
        right = (logits.detach().argmax(-1).cpu() == labels) | (labels == -100)
        losses.append(float(loss.detach()))
        accuracies.append(float(right.all(dim=1).float().mean()))
        if accuracies[-1] >= enough or step == max_steps or not loss.isfinite():
            break
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return Learned(step, accuracies[-1], time.perf_counter() - started, losses, accuracies)
