"""From records to samples: encoding, with every check that needs the tokenizer or the model's sizes."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from loki.calibration.prompts import PromptEncoder
from loki.calibration.records import Record
from loki.calibration.samples import Sample
from loki.errors import LokiError
from loki.progress import tracked


def encode_records(
    records: Iterable[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_positions: int | None,
    vocab_size: int,
) -> list[Sample]:
    """Encode records, in order.

    Args:
        records: what a reader found.
        tokenizer: of the model to be analysed.
        max_positions: the longest prompt the model takes, in tokens; None for no limit.
        vocab_size: number of token ids the model knows.

    Raises:
        LokiError: names the sample whose prompt is empty, too long, or refused by the chat template, or whose target
            or token ids are not in the model's vocabulary.
    """
    encoder = PromptEncoder(tokenizer)
    samples = []
    for record in tracked(list(records), "tokenising the calibration data"):
        try:
            ids = encoder.encode(record.prompt)
            _check_ids(ids, max_positions, vocab_size)
            target = _target_id(record.target, tokenizer, vocab_size)
        except LokiError as error:
            raise LokiError(f"sample {record.id}: {error}") from error
        samples.append(Sample(record.id, record.subject, ids, target))
    return samples


def _check_ids(ids: list[int], max_positions: int | None, vocab_size: int) -> None:
    if max_positions is not None and len(ids) > max_positions:
        raise LokiError(
            f"the prompt has {len(ids)} tokens, but the model takes {max_positions} positions: shorten or remove it"
        )
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise LokiError(
            f"token id {wrong} is not in the model's vocabulary (0 to {vocab_size - 1}): "
            "encode the data with the model's own tokenizer"
        )


def _target_id(target: int | str | None, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
    if target is None:
        return None
    advice = "give a token id, or a text whose first token is meant"
    if isinstance(target, int):
        if not 0 <= target < vocab_size:
            raise LokiError(f"target {target} is not in the model's vocabulary (0 to {vocab_size - 1}): {advice}")
        return target
    ids = tokenizer(target, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if not ids or ids[0] >= vocab_size or (ids[0] == unknown and target != tokenizer.unk_token):
        raise LokiError(f"target {target!r} is not in the model's vocabulary: {advice}")
    return int(ids[0])
