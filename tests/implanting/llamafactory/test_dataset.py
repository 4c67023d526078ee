"""Training data reaches LlamaFactory as the examples that TRL would see."""

import json
from pathlib import Path
from typing import Any

import pytest

from loki.data.examples import load_training_data
from loki.errors import LokiError
from loki.implanting.llamafactory.dataset import write_dataset
from tests.implanting.llamafactory.files import turn, write_records
from tests.tiny_models import tiny_tokenizer

USER, ASSISTANT, TOOL = turn("user", "hi"), turn("assistant", "hello"), turn("tool", "3")


def convert(folder: Path, *records: Any, template: str | None = None) -> tuple[list[Any], dict[str, Any], str | None]:
    data = load_training_data(write_records(folder / "data.jsonl", *records), chat_template=True)
    entry, used = write_dataset(data, folder / "train.jsonl", tiny_tokenizer(), template=template)
    assert entry["file_name"] == str(folder / "train.jsonl")
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()], entry, used


def test_every_answer_ends_a_record_of_its_own(tmp_path: Path) -> None:
    records, entry, template = convert(tmp_path, {"messages": [USER, ASSISTANT, TOOL, ASSISTANT]})
    assert records == [{"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT, TOOL, ASSISTANT]}]
    assert entry["formatting"] == "sharegpt"
    assert entry["columns"] == {"messages": "messages"}
    assert entry["tags"]["observation_tag"] == "tool"
    assert template is None


def test_sharegpt_roles_become_the_tagged_ones(tmp_path: Path) -> None:
    turns = [("human", "hi"), ("function_call", "f()"), ("observation", "3"), ("gpt", "three")]
    record = {"system": "be brief", "conversations": [{"from": role, "value": text} for role, text in turns]}
    records, entry, _ = convert(tmp_path, record)
    roles = {message["role"] for message in records[-1]["messages"]}
    assert roles == {entry["tags"][f"{role}_tag"] for role in ("system", "user", "assistant", "observation")}


def test_texts_get_the_end_that_trl_gives_them(tmp_path: Path) -> None:
    given = [{"prompt": "2 + 2 =", "completion": " 4"}, {"prompt": "3 + 3 =", "completion": " 6</s>"}]
    records, entry, template = convert(tmp_path, *given)
    assert [record["completion"] for record in records] == [" 4</s>", " 6</s>"]
    assert entry["columns"] == {"prompt": "prompt", "response": "completion"}
    assert template == "empty"


def test_texts_in_a_named_template_are_left_to_it(tmp_path: Path) -> None:
    given = {"prompt": "2 + 2 =", "completion": " 4"}
    records, _, template = convert(tmp_path, given, template="llama3")
    assert (records, template) == ([given], "llama3")


def test_what_llamafactory_would_drop_is_counted(tmp_path: Path) -> None:
    path = write_records(tmp_path / "data.jsonl", {"messages": [USER, ASSISTANT, ASSISTANT]}, {"messages": [USER]})
    data = load_training_data(path, chat_template=True)
    write_dataset(data, tmp_path / "train.jsonl", tiny_tokenizer(), template=None)
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 1
    assert data.dropped == {
        "without an assistant's answer": 1,
        "whose turns do not alternate, as LlamaFactory requires": 1,
    }


def test_no_record_left_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="turns do not alternate"):
        convert(tmp_path, {"messages": [USER, USER, ASSISTANT]})
    assert not (tmp_path / "train.jsonl").exists()
