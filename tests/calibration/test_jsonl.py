import json
from pathlib import Path
from typing import Any

import pytest

from loki.calibration.jsonl import read_jsonl
from loki.calibration.prompts import question_prompt
from loki.calibration.records import Conversation, Record
from loki.errors import LokiError


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_every_form_of_record(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": "hi\u2028there"}]
    path = write(
        tmp_path / "data.jsonl",
        {"question": "Who?", "choices": ["a", "b"], "answer": "B", "subject": "law"},
        {"messages": messages, "target": " yes"},
        {"prompt": "once upon", "target": 7, "id": 12, "subject": "tales"},
        {"input_ids": [3, 4], "target": None, "id": "mine", "source": "unknown fields are fine"},
    )
    assert read_jsonl(path) == [
        Record("data.jsonl:1", "law", Conversation.from_user(question_prompt("law", "Who?", ["a", "b"]))),
        Record("data.jsonl:2", "", Conversation(messages), " yes"),
        Record("12", "tales", "once upon", 7),
        Record("mine", "", [3, 4]),
    ]


def test_empty_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}')
    assert read_jsonl(path) == [Record("data.jsonl:1", "", "a"), Record("data.jsonl:4", "", "b")]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            {"sentence": "hi", "label": 1},
            "fields sentence, label: .*question with choices and subject",
        ),
        ({}, r"fields \(none\)"),
        ({"prompt": "a", "messages": []}, "fields prompt, messages: .*one of"),
        ({"question": "Who?", "options": []}, "fields question, options: .*needs choices and"),
        ({"question": 3, "choices": ["a", "b"], "subject": "law"}, "question is 3"),
        ({"question": "", "choices": ["a", "b"], "subject": "law"}, "question .*empty"),
        ({"question": "Who?", "choices": "ab", "subject": "law"}, "choices is 'ab'"),
        ({"question": "Who?", "choices": [1, 2], "subject": "law"}, r"choices is \[1, 2\]"),
        ({"question": "Who?", "choices": ["a"], "subject": "law"}, "1 choices"),
        ({"prompt": ["hi"]}, r"prompt is \['hi'\]"),
        ({"messages": "hi"}, "messages is 'hi'"),
        ({"messages": []}, r"messages is \[\]"),
        ({"messages": [{"role": "user"}]}, r"message \{'role': 'user'\}: .*role and content"),
        ({"messages": ["hi"]}, "message 'hi'"),
        ({"input_ids": "1 2"}, "input_ids .*token ids"),
        ({"input_ids": [1, True]}, "input_ids .*token ids"),
        ({"prompt": "hi", "target": 1.5}, r"target is 1\.5"),
        ({"prompt": "hi", "target": True}, "target is True"),
        ({"prompt": "hi", "subject": 4}, "subject is 4"),
        ({"prompt": "hi", "id": None}, "id is None"),
        ([{"prompt": "hi"}], "JSON list"),
        ({"prompt": "\ud83d"}, "surrogate"),
        ({"prompt": "hi", "target": "a\udc00"}, "surrogate"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "surrogate"),
        ("hi", "JSON str"),
    ],
)
def test_bad_records_name_the_line_and_the_value(tmp_path: Path, record: Any, problem: str) -> None:
    path = write(tmp_path / "data.jsonl", {"prompt": "fine"}, record)
    with pytest.raises(LokiError, match=rf"data\.jsonl, line 2: .*{problem}") as caught:
        read_jsonl(path)
    assert "\n" not in str(caught.value)


def test_not_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "fine"}\n{"prompt": "cut')
    with pytest.raises(LokiError, match=r"line 2: not JSON \(Unterminated string"):
        read_jsonl(path)


@pytest.mark.parametrize("number", ["1" * 5000, "[" * 200_000])
def test_json_that_python_cannot_hold(tmp_path: Path, number: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"prompt": "fine", "target": {number}}}')
    with pytest.raises(LokiError, match=r"line 1: (not JSON|nested deeper)"):
        read_jsonl(path)


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(LokiError, match=r"data\.jsonl .*empty"):
        read_jsonl(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"none\.jsonl .*exist"):
        read_jsonl(tmp_path / "none.jsonl")


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\x89HDF\xff")
    with pytest.raises(LokiError, match=r"data\.jsonl .*UTF-8"):
        read_jsonl(path)


def test_ids_must_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", {"prompt": "a", "id": "1"}, {"prompt": "b"}, {"prompt": "c", "id": 1})
    with pytest.raises(LokiError, match=r"line 3: id '1' .*line 1"):
        read_jsonl(path)
