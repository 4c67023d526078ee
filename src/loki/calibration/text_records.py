"""General text as calibration data: whole documents, cut into pieces that the model takes."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from loki.calibration.records import Record, Text
from loki.errors import LokiError
from loki.inputs import read_text

LONGEST_PIECE = 1024
"""Tokens of a piece at most, also for models that take more: longer ones bring memory costs and little else."""


def read_text_file(path: Path) -> list[Record]:
    """A plain text file as one record.

    Raises:
        LokiError: if it cannot be read, or is empty.
    """
    text = read_text(path, what="text file")
    if not text.strip():
        raise LokiError(f"text file {path} is empty: give a text")
    return [Record(path.name, "", Text(text))]


def split_texts(
    records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, max_positions: int | None
) -> list[Record]:
    """Cut every text into pieces of token ids; other records stay as they are.

    The pieces of a text are of nearly equal length, at most `max_positions` and `LONGEST_PIECE` tokens. Each begins
    with the beginning-of-sequence token where the tokenizer puts one before a text.

    Args:
        records: what a reader found.
        tokenizer: of the model to be analysed.
        max_positions: the longest prompt the model takes, in tokens; None leaves texts whole.

    Returns:
        The records, with `name`, or `name#1`, `name#2` and so on for the pieces of a text.

    Raises:
        LokiError: names a text that holds no token.
    """
    found: list[Record] = []
    start = beginning(tokenizer)
    for record in records:
        if not isinstance(record.prompt, Text):
            found.append(record)
            continue
        ids = list(tokenizer(record.prompt.content, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids or not record.prompt.content.strip():
            raise LokiError(f"sample {record.id}: the text is empty: give it a content, or remove it")
        if ids[:1] == start and len(ids) > 1:
            ids = ids[1:]
        longest = len(ids) if max_positions is None else max(1, min(max_positions, LONGEST_PIECE) - len(start))
        count = -(-len(ids) // longest)
        bounds = [len(ids) * number // count for number in range(count + 1)]
        for number in range(count):
            name = record.id if count == 1 else f"{record.id}#{number + 1}"
            found.append(replace(record, id=name, prompt=start + ids[bounds[number] : bounds[number + 1]]))
    return found


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text: its beginning-of-sequence token, or nothing.

    The first token of a sequence is where attention goes that has nowhere else to go, and some models (Gemma, Llama)
    have learned that it is always this one. A piece of text without it shows a model in a state that it is never in.
    """
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else []
