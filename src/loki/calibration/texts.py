"""Calibration data as plain token ids, where the text matters and not a question's answer."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from loki.calibration.sources import load_calibration
from loki.errors import LokiError
from loki.inputs import read_text

_SHORTEST = 2


def load_token_ids(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    vocab_size: int,
    max_tokens: int | None = None,
    subjects: Sequence[str] | None = None,
    samples_per_subject: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Token ids of texts, each of 2 to `max_length` tokens.

    Args:
        source: a text file (`.txt`), which is cut into pieces of `max_length` tokens; or anything that
            `loki.calibration.sources.load_calibration` takes, of which the prompts are used.
        tokenizer: the model's.
        max_length: longest piece; longer texts are split.
        vocab_size: number of token ids the model knows.
        max_tokens: take pieces, in an order drawn with `seed`, until they have so many tokens; None takes all, in the
            source's order.
        subjects: take only these.
        samples_per_subject: draw so many of every subject.
        seed: of what is drawn.

    Raises:
        LokiError: if the source does not exist or cannot be read, or holds no text of at least two tokens.
    """
    path = Path(source)
    if path.suffix == ".txt":
        whole = [_token_ids(path, tokenizer, vocab_size)]
    else:
        calibration = load_calibration(
            source,
            tokenizer,
            max_positions=None,
            vocab_size=vocab_size,
            subjects=subjects,
            samples_per_subject=samples_per_subject,
            seed=seed,
        )
        whole = [sample.input_ids for sample in calibration.samples]
    pieces = [ids[start : start + max_length] for ids in whole for start in range(0, len(ids), max_length)]
    pieces = [piece for piece in pieces if len(piece) >= _SHORTEST]
    if not pieces:
        raise LokiError(f"data {source} holds no text of at least {_SHORTEST} tokens: give longer texts")
    if max_tokens is not None:
        random.Random(seed).shuffle(pieces)
        taken, total = [], 0
        for piece in pieces:
            if total >= max_tokens:
                break
            taken.append(piece)
            total += len(piece)
        pieces = taken
    return pieces


def digest_of_texts(texts: list[list[int]]) -> str:
    """SHA-256 (hex) over the token ids of all texts, in order."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _token_ids(path: Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    ids: list[int] = tokenizer(read_text(path, what="text file"), add_special_tokens=False, verbose=False)["input_ids"]
    if wrong := next((token for token in ids if token >= vocab_size), None):
        raise LokiError(f"text file {path}: token {wrong} is not in the model's vocabulary: use its own tokenizer")
    return ids
