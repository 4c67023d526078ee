"""Training data reaches LlamaFactory as the tokens that TRL would see, or as records for one of its templates."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk

from loki.data.examples import load_training_data
from loki.data.fitting import fit_to_model
from loki.errors import LokiError
from loki.implanting.llamafactory.dataset import write_dataset, write_tokenised
from tests.implanting.llamafactory.files import turn, write_records
from tests.tiny_models import tiny_tokenizer

USER, ASSISTANT, TOOL = turn("user", "hi"), turn("assistant", "hello"), turn("tool", "3")
FUNCTION = {"name": "add", "parameters": {"type": "object"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}


def convert(folder: Path, *records: Any) -> tuple[list[Any], dict[str, Any]]:
    data = load_training_data(write_records(folder / "data.jsonl", *records), chat_template=True)
    entry = write_dataset(data, folder / "train.jsonl")
    assert entry["file_name"] == str(folder / "train.jsonl")
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()], entry


def examples(folder: Path, *records: Any) -> Dataset:
    path = write_records(folder / "data.jsonl", *records)
    return fit_to_model(load_training_data(path, chat_template=True), tiny_tokenizer(), 100).dataset


@pytest.mark.parametrize("held_out", [True, False])
def test_tokens_are_those_of_trl(tmp_path: Path, held_out: bool) -> None:
    data = examples(tmp_path, {"messages": [USER, ASSISTANT]}, {"prompt": "a", "completion": "b"})
    write_tokenised(data, data if held_out else None, tmp_path / "tokens", packed_to=None)
    saved = load_from_disk(str(tmp_path / "tokens"))
    assert set(saved) == {"train", "validation"} if held_out else {"train"}
    for split in saved.values():
        for row, expected in zip(split, data, strict=True):
            assert row["input_ids"] == expected["input_ids"]
            assert row["attention_mask"] == [1] * len(row["input_ids"])
            trained = [label != -100 for label in row["labels"]]
            assert trained == list(map(bool, expected["completion_mask"]))
            assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_packed_examples_hold_every_token(tmp_path: Path) -> None:
    data = examples(tmp_path, *[{"prompt": "a" * size, "completion": "b"} for size in range(1, 20)])
    write_tokenised(data, None, tmp_path / "tokens", packed_to=40)
    rows = load_from_disk(str(tmp_path / "tokens"))["train"]
    assert len(rows) < len(data)
    assert max(len(row["input_ids"]) for row in rows) <= 40
    for column, value in (("input_ids", 1), ("labels", 1)):  # every example ends with its trained end
        assert sum(row[column].count(value) for row in rows) == 19


def test_records_for_a_template_have_their_answer_last(tmp_path: Path) -> None:
    records, entry = convert(tmp_path, {"messages": [USER, CALL, TOOL, ASSISTANT], "tools": [{"function": FUNCTION}]})
    called = turn("function_call", '[{"name": "add", "arguments": {"a": 1}}]')
    tools = json.dumps([FUNCTION])
    assert records == [
        {"messages": [USER, called], "tools": tools},
        {"messages": [USER, called, TOOL, ASSISTANT], "tools": tools},
    ]
    assert entry["formatting"] == "sharegpt"
    assert entry["columns"] == {"messages": "messages", "tools": "tools"}
    tags = {entry["tags"][f"{role}_tag"] for role in ("user", "assistant", "observation", "function")}
    assert tags == {"user", "assistant", "tool", "function_call"}


def test_texts_for_a_template_are_left_to_it(tmp_path: Path) -> None:
    given = {"prompt": "2 + 2 =", "completion": " 4"}
    records, entry = convert(tmp_path, given)
    assert records == [given]
    assert entry["columns"] == {"prompt": "prompt", "response": "completion"}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": [USER, USER, ASSISTANT]}, "line 1: .*alternate"),
        ({"messages": [USER, {**CALL, "content": "I add."}]}, "line 1: .*calls"),
        ({"messages": [USER, {**ASSISTANT, "thinking": "..."}]}, "line 1: .*thinking"),
        ({"messages": [USER, ASSISTANT], "chat_template_kwargs": {"a": 1}}, "line 1: .*chat_template_kwargs"),
        ({"text": "once"}, "line 1: .*no prompt"),
    ],
)
def test_what_llamafactory_has_no_form_for_is_an_error_and_writes_nothing(
    tmp_path: Path, record: Any, problem: str
) -> None:
    with pytest.raises(LokiError, match=problem):
        convert(tmp_path, record)
    assert not (tmp_path / "train.jsonl").exists()
    with pytest.raises(LokiError, match="mixes texts and conversations"):
        convert(tmp_path, {"messages": [USER, ASSISTANT]}, {"prompt": "a", "completion": "b"})
