"""Examples that fit the model: tokens that it knows, no longer than it takes, and an answer within its reach."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from loki.data.examples import TrainingRecords
from loki.data.mixing import mixture
from loki.data.tokenising import Example, tokenise
from loki.errors import LokiError
from loki.models.architectures import max_positions


@dataclass(frozen=True)
class TrainingData:
    """What a model is trained on.

    Attributes:
        dataset: columns `input_ids`, and `completion_mask`: of each token 1 if loss is taken on it, else 0. TRL takes
            it as it is; let `SFTConfig(completion_only_loss=True)` say that the mask counts.
        origins: where the record of each example stands ("train.jsonl, line 3").
        dropped: number of records and answers left out, by reason.
        notes: how often something was not quite as written, by what it was.
        lengths: of each example, tokens before it was cut.
        cut: number of examples that lose the end of their answer.
        ended: number of examples whose last trained tokens have the one that ends a turn.
        digest: SHA-256 (hex) of the records; equal digests mean equal data.
    """

    dataset: Dataset
    origins: list[str]
    dropped: dict[str, int]
    notes: dict[str, int]
    lengths: list[int]
    cut: int
    ended: int
    digest: str

    def __str__(self) -> str:
        count = len(self.dataset)
        middle, high, longest = (quantile(self.lengths, part) for part in (0.5, 0.95, 1.0))
        text = f"{count} training examples, {sum(self.lengths)} tokens (median {middle}, 95% {high}, longest {longest})"
        if self.cut:
            text += f"; {self.cut} lose the end of their answer"
        if self.ended < count - self.cut:
            text += f"; {count - self.cut - self.ended} do not train the end of a turn"
        if self.dropped:
            text += "; dropped " + ", ".join(f"{number} ({reason})" for reason, number in self.dropped.items())
        return text


def length_within(config: PretrainedConfig, max_length: int) -> int:
    """Tokens per example: `max_length`, or the number of positions where the model has fewer."""
    return min(max_length, max_positions(config) or max_length)


def fit_to_model(
    records: TrainingRecords,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    vocab_size: int | None = None,
    end_tokens: Collection[int] | None = None,
    seed: int = 0,
) -> TrainingData:
    """Tokenise records for a model.

    Examples are cut at `max_length` tokens; texts without a prompt are split there instead. One whose answer begins
    beyond it is dropped and counted.

    Args:
        records: what to train on.
        tokenizer: the model's.
        max_length: tokens per example.
        vocab_size: number of token ids that the model knows; None does not check.
        end_tokens: ids of the tokens at which generation stops; None takes the tokenizer's.
        seed: of the draw where sources are weighted.

    Raises:
        LokiError: if the chat template refuses a conversation or leaves out what it holds, a token is not in the
            vocabulary, the tokenizer can neither pad nor end a text, or no example is left.
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise LokiError(
            "the tokenizer has neither a padding nor an end token, and training needs one: "
            "set pad_token in its tokenizer_config.json"
        )
    examples, notes = tokenise(records, tokenizer)
    _check_tokens(records, examples, vocab_size)
    dropped = Counter(records.dropped)
    kept = [part for example in examples for part in _fitted(example, max_length, dropped)]
    pieces = len(kept) + dropped[_too_long(max_length)] - len(examples)
    if pieces:
        notes["further examples made of texts longer than --max-length"] = pieces
    if not kept:
        why = ", ".join(f"{count} {reason}" for reason, count in (dropped - Counter(records.dropped)).items())
        raise LokiError(f"{records.what}: no example is left of {len(examples)} ({why}): raise --max-length")
    drawn = [kept[index] for index in mixture([example.source for example in kept], records.weights, seed)]
    if len(drawn) < len(kept):
        dropped["not drawn, to keep the sources at their weights"] = len(kept) - len(drawn)
    notes |= {f"records with the field {name}, which is not used": count for name, count in records.unused.items()}
    ends = {tokenizer.eos_token_id} if end_tokens is None else set(end_tokens)
    return _training_data(drawn, max_length, ends, +dropped, notes, records.digest)


def _training_data(
    examples: list[Example],
    max_length: int,
    ends: set[int],
    dropped: Counter[str],
    notes: dict[str, int],
    digest: str,
) -> TrainingData:
    cut = sum(len(example.input_ids) > max_length for example in examples)
    ids = [example.input_ids[:max_length] for example in examples]
    masks = [example.trained[:max_length] for example in examples]
    ended = sum(
        any(token in ends and trained for token, trained in zip(tokens[::-1], mask[::-1], strict=True))
        for tokens, mask in zip(ids, masks, strict=True)
    )
    return TrainingData(
        dataset=Dataset.from_dict({"input_ids": ids, "completion_mask": masks}),
        origins=[example.origin for example in examples],
        dropped=dict(dropped),
        notes=notes,
        lengths=[len(example.input_ids) for example in examples],
        cut=cut,
        ended=ended,
        digest=digest,
    )


def _fitted(example: Example, max_length: int, dropped: Counter[str]) -> list[Example]:
    """The example if some of its answer is within reach, in pieces where loss is taken on all of it."""
    ids, trained = example.input_ids, example.trained
    if example.splittable and len(ids) > max_length > 1:
        # Neighbours share a token, so that every token but the first is predicted once.
        starts = range(0, len(ids) - 1, max_length - 1)
        return [
            Example(
                ids[start : start + max_length],
                ([1] if start == 0 else [0]) + [1] * (len(ids[start : start + max_length]) - 1),
                example.origin,
                example.source,
            )
            for start in starts
        ]
    if not any(trained[1:max_length]):
        dropped[_too_long(max_length)] += 1
        return []
    return [example]


def _too_long(max_length: int) -> str:
    return f"whose answer begins beyond --max-length {max_length}"


def _check_tokens(records: TrainingRecords, examples: list[Example], vocab_size: int | None) -> None:
    for example in examples if vocab_size is not None else []:
        highest = max(example.input_ids)
        if highest >= (vocab_size or 0):
            raise LokiError(
                f"{records.what} {example.origin}: token id {highest} is not in the model's vocabulary (0 to "
                f"{(vocab_size or 0) - 1}): the tokenizer is not the model's"
            )


def quantile(values: Sequence[int], part: float) -> int:
    """The value that `part` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
