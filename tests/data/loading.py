"""Records in a file become examples in one call."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from loki.data.examples import TrainingRecords, load_training_data
from loki.data.fitting import TrainingData, fit_to_model
from tests.tiny_models import tiny_tokenizer

LONG = 10_000


def write_records(path: Path, *records: Any) -> Path:
    """A JSON Lines file; a text stands in it as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def load(folder: Path, *records: Any, chat_template: bool = True) -> TrainingRecords:
    return load_training_data(write_records(folder / "train.jsonl", *records), chat_template=chat_template)


def fit(
    folder: Path, *records: Any, tokenizer: PreTrainedTokenizerBase | None = None, max_length: int = LONG
) -> TrainingData:
    tokenizer = tokenizer or tiny_tokenizer()
    return fit_to_model(load(folder, *records, chat_template=bool(tokenizer.chat_template)), tokenizer, max_length)


def texts(data: TrainingData, tokenizer: PreTrainedTokenizerBase | None = None) -> list[tuple[str, str]]:
    """Of every example, the text before what is trained, and what is trained."""
    tokenizer = tokenizer or tiny_tokenizer()
    shown = []
    for example in data.dataset:
        begin = example["completion_mask"].index(1)
        assert set(example["completion_mask"][begin:]) == {1}
        shown.append((tokenizer.decode(example["input_ids"][:begin]), tokenizer.decode(example["input_ids"][begin:])))
    return shown
