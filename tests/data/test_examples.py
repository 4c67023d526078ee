"""Three shapes of training records become prompts and completions; everything else is refused with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from loki.data.examples import TrainingData, load_training_data
from loki.errors import LokiError

QUESTION, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def load(folder: Path, *records: Any, chat_template: bool = True) -> TrainingData:
    path = folder / "train.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return load_training_data(path, chat_template=chat_template)


def test_messages(tmp_path: Path) -> None:
    data = load(tmp_path, {"messages": [QUESTION, ANSWER]})
    assert data.dataset.to_list() == [{"prompt": [QUESTION], "completion": [ANSWER]}]
    assert data.dropped == {}


def test_every_assistant_turn_is_trained(tmp_path: Path) -> None:
    data = load(tmp_path, {"messages": [QUESTION, ANSWER, QUESTION, ANSWER]})
    assert data.dataset.to_list() == [
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]},
    ]


@pytest.mark.parametrize(
    ("user", "assistant", "tool"), [("human", "gpt", "observation"), ("user", "assistant", "tool")]
)
def test_sharegpt(tmp_path: Path, user: str, assistant: str, tool: str) -> None:
    turns = [(user, "hi"), ("function_call", "f()"), (tool, "3"), (assistant, "three")]
    record = {"system": "be brief", "conversations": [{"from": role, "value": text} for role, text in turns]}
    examples = load(tmp_path, record).dataset.to_list()
    assert [message["role"] for message in examples[-1]["prompt"]] == ["system", "user", "assistant", "tool"]
    assert [example["completion"][0]["content"] for example in examples] == ["f()", "three"]


def test_prompt_and_completion_need_no_chat_template(tmp_path: Path) -> None:
    data = load(tmp_path, {"prompt": "2 + 2 =", "completion": " 4"}, chat_template=False)
    assert data.dataset.to_list() == [{"prompt": "2 + 2 =", "completion": " 4"}]


def test_dropped_records_are_counted(tmp_path: Path) -> None:
    data = load(tmp_path, {"messages": [QUESTION, ANSWER]}, {"messages": [QUESTION]}, {"messages": []})
    assert data.dropped == {"without an assistant's answer": 2}
    assert str(data) == "1 training examples; dropped 2 (without an assistant's answer)"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
        ({"text": "hi"}, "line 2 has the fields text"),
        ({"prompt": "hi", "completion": 3}, "line 2: .* must be texts"),
        ({"messages": "hi"}, "line 2: expected a list of messages"),
        ({"messages": [{"role": "user"}]}, 'line 2: every message needs "role"'),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "line 2: unknown role 'robot'"),
        ({"prompt": "a", "completion": "b"}, r"mixes texts \(line 2\) and conversations \(line 1\)"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(LokiError, match=message):
        load(tmp_path, {"messages": [QUESTION, ANSWER]}, record)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="does not exist"):
        load_training_data(tmp_path / "absent.jsonl", chat_template=True)
    with pytest.raises(LokiError, match="it is empty"):
        load(tmp_path)
    with pytest.raises(LokiError, match=r"no usable record \(2 without an assistant's answer"):
        load(tmp_path, {"messages": [QUESTION]}, {"messages": [QUESTION]})
    with pytest.raises(LokiError, match="no chat template"):
        load(tmp_path, {"messages": [QUESTION, ANSWER]}, chat_template=False)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LokiError, match="not UTF-8"):
        load_training_data(tmp_path / "binary.jsonl", chat_template=True)
