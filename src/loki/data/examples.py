"""Loading training data: sources of any format become records that are checked, but not tokenised yet."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass

from loki.data.reading import read_records
from loki.data.records import Conversation, Item, parse_record
from loki.data.sources import Data, as_sources
from loki.errors import LokiError


@dataclass(frozen=True)
class TrainingRecords:
    """What a model is to be trained on, before its tokenizer has seen it.

    Attributes:
        items: of each usable record, what is trained on.
        origins: where each stands ("train.jsonl, line 3").
        sources: of each, the index of the source it comes from.
        weights: of each source, its share in the mixture; None where all of it is taken.
        dropped: number of records and answers left out, by reason.
        unused: number of records with a field that says nothing about training, by field.
        what: their role, for error messages.
        digest: SHA-256 (hex) over all that is trained on; equal digests mean equal data, in whatever files it came.
    """

    items: list[Item]
    origins: list[str]
    sources: list[int]
    weights: list[float | None]
    dropped: dict[str, int]
    unused: dict[str, int]
    what: str
    digest: str

    @property
    def conversations(self) -> bool:
        """Whether any record is a conversation, for the chat template."""
        return any(isinstance(item, Conversation) for item in self.items)


def load_training_data(
    data: Data,
    *,
    chat_template: bool,
    split: str | None = None,
    subset: str | None = None,
    what: str = "training data",
) -> TrainingRecords:
    """Read training data.

    Records are conversations (`messages` as of OpenAI, `conversations` as of ShareGPT, either with `tools`, calls and
    their results), `prompt` and `completion` (texts or messages), Alpaca's `instruction`, `input` and `output`,
    `{"text"}` (loss on all of it), or `{"input_ids", "labels"}`. See `read_records` for the formats of files.

    Every assistant turn of a conversation is an example, a turn that is only a call too, unless a loss switch on it
    (`weight: 0`, `train: false`, `loss: false`) says otherwise.

    Args:
        data: one source or several: file, directory or hub data set, perhaps with a weight (see `Source`).
        chat_template: whether the tokenizer has a chat template, which conversations need.
        split: which split of the sources that have several; None takes `train`.
        subset: which subset of a hub data set.
        what: its role, for error messages.

    Raises:
        LokiError: if a source is missing, damaged or empty, a record has another form or a field of the wrong type
            (names file, line and field), or no record is usable.
    """
    sources = as_sources(data, split=split, subset=subset)
    items: list[Item] = []
    origins: list[str] = []
    indices: list[int] = []
    dropped: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    digest = hashlib.sha256(json.dumps([source.weight for source in sources]).encode())
    for index, source in enumerate(sources):
        before, skipped = len(items), dropped.total()
        for where, record in read_records(source, what=what):
            try:
                parsed = parse_record(record, chat_template=chat_template)
            except LokiError as error:
                raise LokiError(f"{what} {where}: {error}") from error
            unused.update(parsed.unused)
            dropped.update(parsed.dropped)
            if parsed.item is None:
                continue
            items.append(parsed.item)
            origins.append(where)
            indices.append(index)
            digest.update(json.dumps([index, type(parsed.item).__name__, vars(parsed.item)]).encode())
        if len(items) == before:
            why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise LokiError(
                f"{what} {source.location} has no usable record ({why if dropped.total() > skipped else 'it is empty'})"
            )
    weights = [source.weight for source in sources]
    return TrainingRecords(items, origins, indices, weights, dict(dropped), dict(unused), what, digest.hexdigest())
