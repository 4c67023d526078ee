"""What a training has taught: loss and exact answers before and after, on the training data and on held-out data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.implanting.training.encoded import Encoded, batches, sample, trained_predictions
from loki.metrics.modes import evaluating

_SHOWN = 3  # answers
_SHOWN_TOKENS = 48  # of each
_LEAST_FALL = 0.1  # of the loss; below it nothing was learned


@dataclass(frozen=True)
class Measured:
    """What a model does on examples.

    Attributes:
        loss: mean negative log-likelihood of the trained tokens, in nats.
        exact: fraction of the examples whose trained tokens are all the model's first choice, given those before: what
            greedy decoding reproduces to the last token.
        examples: number of examples that were looked at.
    """

    loss: float
    exact: float
    examples: int


@dataclass(frozen=True)
class Snapshot:
    """What a model does at one moment.

    Attributes:
        trained: on the training data.
        held_out: on held-out data, if there is any.
        answers: what it says to a few training prompts, greedily.
    """

    trained: Measured
    held_out: Measured | None
    answers: list[str]


@dataclass(frozen=True)
class Learned:
    """What a training has taught.

    Attributes:
        before: the model before.
        after: the model after.
        prompts: the prompts that both have answered.
        wanted: the answers in the training data.
        damage: KL(before || after) in nats per token on general text.
    """

    before: Snapshot
    after: Snapshot
    prompts: list[str]
    wanted: list[str]
    damage: float

    @property
    def anything(self) -> bool:
        """Whether the loss on the training data fell by a tenth at least."""
        return self.after.trained.loss <= (1 - _LEAST_FALL) * self.before.trained.loss

    def lines(self) -> list[str]:
        """What to print."""
        told = [_comparison("training data", self.before.trained, self.after.trained)]
        if self.before.held_out and self.after.held_out:
            told.append(_comparison("held-out data", self.before.held_out, self.after.held_out))
        told.append(
            f"general text: KL {self.damage:.3g} nats per token from the model before (`loki compare` says more)"
        )
        for prompt, before, after, wanted in zip(
            self.prompts, self.before.answers, self.after.answers, self.wanted, strict=True
        ):
            right = "as trained" if after == wanted else f"trained: {_short(wanted)!r}"
            told.append(f"  {_short(prompt, end=True)!r}: {_short(before)!r} before, {_short(after)!r} now ({right})")
        return told

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def snapshot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Encoded],
    held_out: Sequence[Encoded] | None,
    *,
    batch_size: int = 8,
) -> Snapshot:
    """What a model does on a sample of examples.

    Args:
        model: a causal language model; it is left in the mode it came in.
        tokenizer: its tokenizer.
        examples: what it is trained on.
        held_out: what it is not.
        batch_size: examples per forward pass.
    """
    return Snapshot(
        measure(model, sample(examples), batch_size=batch_size),
        measure(model, sample(held_out), batch_size=batch_size) if held_out else None,
        [_answer(model, tokenizer, example) for example in shown(examples)],
    )


def shown(examples: Sequence[Encoded]) -> list[Encoded]:
    """The examples whose answers are shown: a few, at equal distances."""
    return sample(examples, most=_SHOWN, tokens=2**30)


@torch.no_grad()
def measure(model: PreTrainedModel, examples: Sequence[Encoded], *, batch_size: int = 8) -> Measured:
    """Loss and exact answers of a model on examples; it is left in the mode it came in."""
    total, right, tokens = 0.0, 0, 0
    with evaluating(model):
        for batch in batches(examples, batch_size, model.device):
            logits, wanted, owners = trained_predictions(model, batch)
            total += float(cross_entropy(logits.float(), wanted, reduction="sum"))
            tokens += len(wanted)
            wrong = owners[logits.argmax(-1) != wanted]
            right += len(batch.input_ids) - len(torch.unique(wrong))
    return Measured(total / max(1, tokens), right / len(examples), len(examples))


@torch.no_grad()
def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: Encoded) -> str:
    prompt = example.prompt or example.ids[:1]
    input_ids = torch.tensor([prompt], device=model.device)
    with evaluating(model):
        generated = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=min(len(example.answer) + 8, _SHOWN_TOKENS),
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    return text_of(tokenizer, generated[0, len(prompt) :].tolist())


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Tokens as a text for people."""
    return str(tokenizer.decode(ids[:_SHOWN_TOKENS], skip_special_tokens=True)).strip()


def _comparison(what: str, before: Measured, after: Measured) -> str:
    return (
        f"{what}: loss {before.loss:.3f} before, {after.loss:.3f} now; exact answers {before.exact:.1%} before, "
        f"{after.exact:.1%} now ({after.examples} examples)"
    )


def _short(text: str, most: int = 60, *, end: bool = False) -> str:
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    return "..." + line[3 - most :] if end else line[: most - 3] + "..."
