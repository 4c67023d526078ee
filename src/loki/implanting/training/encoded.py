"""Training examples as tokens, in batches: for what is measured and tried out beside the trainer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from loki.models.logits import logits_at

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Encoded:
    """One example.

    Attributes:
        ids: token ids.
        trained: of each, whether loss is taken on it.
    """

    ids: list[int]
    trained: list[bool]

    @property
    def prompt(self) -> list[int]:
        """The tokens before the first trained one."""
        return self.ids[: self.trained.index(True)]

    @property
    def answer(self) -> list[int]:
        """The trained tokens."""
        return [token for token, trained in zip(self.ids, self.trained, strict=True) if trained]


@dataclass(frozen=True)
class Batch:
    """Examples, padded on the right, where causal attention does not see it.

    Attributes:
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, 1 for tokens of an example.
        labels: `[B, T]`, `IGNORED_LABEL` where no loss is taken.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def collate(examples: Sequence[Encoded], device: torch.device) -> Batch:
    """Examples as one batch."""
    length = max(len(example.ids) for example in examples)
    input_ids = torch.zeros(len(examples), length, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for entry, example in enumerate(examples):
        tokens = torch.tensor(example.ids)
        input_ids[entry, : len(tokens)] = tokens
        attention_mask[entry, : len(tokens)] = 1
        labels[entry, : len(tokens)] = tokens.masked_fill(~torch.tensor(example.trained), IGNORED_LABEL)
    return Batch(input_ids.to(device), attention_mask.to(device), labels.to(device))


def sample(examples: Sequence[Encoded], *, most: int = 128, tokens: int = 16_384) -> list[Encoded]:
    """Examples at equal distances: no more than `most`, and about as many as make up `tokens` tokens."""
    length = sum(len(example.ids) for example in examples) / len(examples)
    count = min(len(examples), most, max(1, int(tokens / length)))
    return [examples[index * len(examples) // count] for index in range(count)]


def batches(examples: Sequence[Encoded], size: int, device: torch.device) -> Iterator[Batch]:
    """Batches of examples of like length, each example once."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(ordered), size):
        yield collate(ordered[start : start + size], device)


def trained_predictions(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a model predicts where loss is taken; the logits of other positions are not even computed, if it can be so.

    Args:
        model: in any mode.
        batch: examples.

    Returns:
        Logits `[N, V]`, the `N` tokens that they should be, and the example that each belongs to.
    """
    wanted = batch.labels[:, 1:] != IGNORED_LABEL  # [B, T-1]
    columns = wanted.any(0).nonzero().flatten()
    logits = logits_at(model, columns, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    chosen = wanted[:, columns].to(logits.device)
    targets = batch.labels[:, 1:][:, columns].to(logits.device)
    return logits[chosen], targets[chosen], chosen.nonzero()[:, 0]
