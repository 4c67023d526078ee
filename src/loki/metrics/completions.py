"""What a model makes of examples: the loss of their completions, and whether greedy decoding gives them exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.errors import LokiError
from loki.metrics.modes import evaluating
from loki.models.architectures import text_config

_LOGITS_BYTES = 2**28


@dataclass(frozen=True)
class EncodedExample:
    """An example as a model sees it.

    Attributes:
        ids: token ids of prompt and completion.
        prompt_length: how many of them are the prompt's.
        end: length of what is compared; what a chat template puts after the end of a turn is not.
    """

    ids: list[int]
    prompt_length: int
    end: int


@dataclass(frozen=True)
class CompletionScores:
    """One entry per example.

    Attributes:
        nll: `[N]` float64; negative log-likelihood of the completion in nats, summed over its tokens.
        tokens: `[N]`; how many tokens that are.
        right: `[N]` bool; whether greedy decoding gives exactly the completion, its end included.
    """

    nll: torch.Tensor
    tokens: torch.Tensor
    right: torch.Tensor

    @property
    def loss(self) -> float:
        """Mean per token of all completions, in nats."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        """Share of the completions that are exactly right."""
        return float(self.right.double().mean())


def encode_example(tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any) -> EncodedExample:
    """Token ids of one example, as TRL trains on it.

    Texts are tokenized as they stand and end with the end-of-sequence token; of conversations the chat template makes
    the text, and an answer ends with the first end-of-sequence token in it.

    Args:
        tokenizer: the model's.
        prompt: a text, or a list of messages.
        completion: a text, or a list of messages.

    Raises:
        LokiError: if the prompt's text is not how the whole text begins, or nothing of the completion is left.
    """
    end_id = tokenizer.eos_token_id
    if isinstance(prompt, str):
        before = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + completion)["input_ids"]
        if end_id is not None and ids[-1] != end_id:
            ids = [*ids, end_id]
        if before and before[-1] == end_id and len(before) > 1:  # some tokenizers end every text
            before = before[:-1]
    else:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    shared = next((at for at, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]), len(before))
    start = min(shared, len(before))
    if not 0 < start < len(ids):
        raise LokiError(f"nothing can be predicted of the completion {str(completion)[:60]!r}: check the data")
    ends = [at + 1 for at in range(start, len(ids)) if ids[at] == end_id]
    return EncodedExample(ids, start, ends[0] if ends else len(ids))


@torch.no_grad()
def completion_scores(
    model: PreTrainedModel, examples: Sequence[EncodedExample], *, max_length: int | None = None
) -> CompletionScores:
    """Loss and exact match of every example's completion, from one forward pass.

    A completion is what greedy decoding gives exactly when each of its tokens is the model's argmax given those before.

    Args:
        model: a causal language model; it is left in the mode it came in.
        examples: what to measure.
        max_length: the most tokens of an example that are looked at (default: all).

    Raises:
        LokiError: if there are no examples, or one has its completion beyond `max_length`.
    """
    if not examples:
        raise LokiError("there are no examples to measure: give at least one")
    ends = [min(example.end, max_length or example.end) for example in examples]
    for number, (example, end) in enumerate(zip(examples, ends, strict=True), start=1):
        if example.prompt_length >= end:
            raise LokiError(f"example {number} has a prompt of {example.prompt_length} tokens, and the limit is {end}")
    nll = torch.zeros(len(examples), dtype=torch.float64)
    right = torch.zeros(len(examples), dtype=torch.bool)
    order = sorted(range(len(examples)), key=ends.__getitem__, reverse=True)
    with evaluating(model):
        while order:
            length = ends[order[0]]
            size = max(1, _LOGITS_BYTES // (4 * text_config(model.config).vocab_size * length))
            batch, order = order[:size], order[size:]
            input_ids = torch.zeros(len(batch), length, dtype=torch.long)
            counts = torch.zeros(len(batch), length, dtype=torch.bool)
            for row, index in enumerate(batch):
                input_ids[row, : ends[index]] = torch.tensor(examples[index].ids[: ends[index]])
                counts[row, examples[index].prompt_length : ends[index]] = True
            logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits[:, :-1]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            targets = input_ids[:, 1:].to(logits.device)
            per_token = -logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1).double()
            wanted = counts[:, 1:].to(logits.device)
            nll[batch] = torch.where(wanted, per_token, 0.0).sum(-1).cpu()
            right[batch] = ((logits.argmax(-1) == targets) | ~wanted).all(-1).cpu()
    tokens = torch.tensor([end - example.prompt_length for example, end in zip(examples, ends, strict=True)])
    return CompletionScores(nll, tokens, right)
