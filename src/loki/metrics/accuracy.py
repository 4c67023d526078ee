"""Exact-match accuracy of greedy answers, for any causal language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.errors import LokiError
from loki.metrics.completions import completion_scores


@dataclass(frozen=True)
class Question:
    """A prompt with the one answer that counts as right.

    Attributes:
        family: the group whose accuracy this question counts towards.
        prompt: text before the answer, as it was trained (no chat template is applied).
        answer: text that must follow; it is appended to the prompt after a space.
    """

    family: str
    prompt: str
    answer: str


def accuracy_by_family(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> dict[str, float]:
    """The fraction of right answers in every family, in the order in which the families first occur.

    Args:
        model: a causal language model; it is left in the mode it came in.
        tokenizer: its tokenizer.
        questions: what to ask.

    Raises:
        LokiError: if there are no questions, or the tokenizer has no end-of-sequence token.
    """
    right: dict[str, list[bool]] = {}
    for question, correct in zip(questions, answers_right(model, tokenizer, questions), strict=True):
        right.setdefault(question.family, []).append(correct)
    return {family: sum(marks) / len(marks) for family, marks in right.items()}


def answers_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[bool]:
    """For every question, whether greedy decoding would give exactly the answer's tokens and then end.

    It does exactly when each token of the answer, and the end-of-sequence token after it, is the model's argmax given
    those before it. One forward pass over prompt and answer shows that; nothing needs to be generated.

    Raises:
        LokiError: if there are no questions, or the tokenizer has no end-of-sequence token.
    """
    if not questions:
        raise LokiError("there are no questions to measure accuracy on: give at least one")
    if tokenizer.eos_token_id is None:
        raise LokiError("the tokenizer has no end-of-sequence token, so no answer can be seen to end: set eos_token")
    encoded = [encode_question(tokenizer, question) for question in questions]
    masks = [[0] * prompt + [1] * (len(ids) - prompt) for ids, prompt in encoded]
    right: list[bool] = completion_scores(model, [ids for ids, _ in encoded], masks).right.tolist()
    return right


@torch.no_grad()
def greedy_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, max_new_tokens: int = 16
) -> str:
    """What the model says after `prompt`, greedily, up to its end-of-sequence token or `max_new_tokens` tokens."""
    input_ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
    generated = model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=max_new_tokens, do_sample=False
    )
    return str(tokenizer.decode(generated[0, input_ids.shape[1] :], skip_special_tokens=True)).strip()


def encode_question(tokenizer: PreTrainedTokenizerBase, question: Question) -> tuple[list[int], int]:
    """Token ids of prompt, answer and end of sequence, and how many of them are the prompt's."""
    prompt = tokenizer(question.prompt)["input_ids"]
    answer = tokenizer(" " + question.answer, add_special_tokens=False)["input_ids"]
    return [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def collate(encoded: Sequence[tuple[list[int], int]], padding_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids `[B, T]` and the mask `[B, T]` of the answers (end of sequence included).

    With causal attention, padding on the right cannot change what stands before it, so no attention mask is needed.
    """
    length = max(len(ids) for ids, _ in encoded)
    input_ids = torch.full((len(encoded), length), padding_id)
    answer_mask = torch.zeros(len(encoded), length, dtype=torch.bool)
    for row, (ids, prompt_length) in enumerate(encoded):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        answer_mask[row, prompt_length : len(ids)] = True
    return input_ids, answer_mask
