"""Calibration data as plain token ids, where the text matters and not a question's answer."""

import hashlib
import json
import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from loki.calibration.sources import load_calibration
from loki.calibration.text_records import beginning
from loki.errors import LokiError

_SHORTEST = 2


Sources = str | Sequence[str]
"""One source of texts, or several of equal weight."""


def load_token_ids(
    source: Sources,
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
        source: anything that `loki.calibration.sources.load_calibration` takes: a text, or what has prompts. Of several
            each gives an equal part of `max_tokens`.
        tokenizer: the model's.
        max_length: longest piece; longer texts are split, and each piece begins as the tokenizer begins a text.
        vocab_size: number of token ids the model knows.
        max_tokens: take pieces, in an order drawn with `seed`, until they have so many tokens; None takes all, in the
            source's order.
        subjects: take only these.
        samples_per_subject: draw so many of every subject.
        seed: of what is drawn.

    Raises:
        LokiError: if the source does not exist or cannot be read, or holds no text of at least two tokens.
    """
    sources = listed(source)
    share = None if max_tokens is None else -(-max_tokens // len(sources))
    start = beginning(tokenizer)
    found: list[list[int]] = []
    for one in sources:
        calibration = load_calibration(
            one,
            tokenizer,
            max_positions=None,
            vocab_size=vocab_size,
            subjects=subjects,
            samples_per_subject=samples_per_subject,
            seed=seed,
        )
        pieces = [piece for sample in calibration.samples for piece in cut(sample.input_ids, max_length, start)]
        pieces = [piece for piece in pieces if len(piece) >= _SHORTEST]
        if not pieces:
            raise LokiError(f"data {one} holds no text of at least {_SHORTEST} tokens: give longer texts")
        found += pieces if share is None else _drawn(pieces, share, seed)
    return found


def listed(source: Sources) -> list[str]:
    """The sources one by one."""
    return [source] if isinstance(source, str) else list(source)


def digest_of_texts(texts: list[list[int]]) -> str:
    """SHA-256 (hex) over the token ids of all texts, in order."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def cut(ids: list[int], longest: int, start: list[int]) -> list[list[int]]:
    """Pieces of at most `longest` tokens, in order; each begins with `start` if the whole does."""
    again = start if start and ids[: len(start)] == start and longest > len(start) else []
    body, step = ids[len(again) :], longest - len(again)
    return [again + body[first : first + step] for first in range(0, len(body), step)]


def _drawn(pieces: list[list[int]], tokens: int, seed: int) -> list[list[int]]:
    """Pieces in an order drawn with `seed`, until they have so many tokens."""
    random.Random(seed).shuffle(pieces)
    taken, total = [], 0
    for piece in pieces:
        if total >= tokens:
            break
        taken.append(piece)
        total += len(piece)
    return taken
