"""Records of every form are read, and every record that is not is refused with its line."""

from pathlib import Path
from typing import Any

import pytest

from loki.data.examples import load_training_data
from loki.data.records import Conversation, Text, Tokens
from loki.errors import LokiError
from tests.data.loading import load

QUESTION, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SWITCHED_OFF = {"switched off by weight, train or loss": 1}


def only_item(folder: Path, record: Any, *, chat_template: bool = True) -> Any:
    return load(folder, record, chat_template=chat_template).items[0]


def test_messages_go_on_as_they_are(tmp_path: Path) -> None:
    messages = [{"role": "developer", "content": "be brief"}, QUESTION, CALL, RESULT, {**ANSWER, "name": "loki"}]
    item = only_item(tmp_path, {"messages": messages, "tools": [TOOL]})
    assert item == Conversation(messages, [TOOL], [2, 4])


def test_twelve_records_of_a_call_and_an_answer_are_24_examples(tmp_path: Path) -> None:
    record = {"messages": [QUESTION, CALL, RESULT, ANSWER], "tools": [TOOL]}
    assert sum(len(item.trained) for item in load(tmp_path, *[record] * 12).items) == 24  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [None, "", [], "absent"])
def test_a_turn_that_is_only_a_call_is_trained(tmp_path: Path, content: Any) -> None:
    call = {name: value for name, value in CALL.items() if name != "content"}
    if content != "absent":
        call["content"] = content
    assert only_item(tmp_path, {"messages": [QUESTION, call]}).trained == [1]


def test_sharegpt(tmp_path: Path) -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    turns = [("human", "hi"), ("function_call", call), ("observation", "3"), ("gpt", "three")]
    record = {
        "system": "be brief",
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "tools": '[{"name": "add", "parameters": {"type": "object"}}]',
    }
    function = {"name": "add", "arguments": {"a": 1}}
    assert only_item(tmp_path, record) == Conversation(
        [
            {"role": "system", "content": "be brief"},
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "three"},
        ],
        [TOOL],
        [2, 4],
    )


def test_a_sharegpt_call_that_is_no_json_stays_a_text(tmp_path: Path) -> None:
    turns = [{"from": "user", "value": "hi"}, {"from": "function_call", "value": "f()"}]
    assert only_item(tmp_path, {"conversations": turns}).messages[1] == {"role": "assistant", "content": "f()"}


def test_the_older_way_of_calling(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}}
    record = {"messages": [QUESTION, call], "functions": [TOOL["function"]]}
    item = only_item(tmp_path, record)
    assert item.tools == [TOOL]
    assert item.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]


def test_prompt_and_completion(tmp_path: Path) -> None:
    given = {"prompt": "2 + 2 =", "completion": " 4"}
    assert only_item(tmp_path, given, chat_template=False) == Text("2 + 2 =", " 4")
    messages = {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [CALL, RESULT, ANSWER]}
    assert only_item(tmp_path, messages).trained == [3, 5]


def test_alpaca(tmp_path: Path) -> None:
    record = {"instruction": "Add.", "input": "1 and 2", "output": "3", "history": [["hi", "hello"]], "system": "short"}
    assert only_item(tmp_path, record) == Conversation(
        [
            {"role": "system", "content": "short"},
            QUESTION,
            ANSWER,
            {"role": "user", "content": "Add.\n1 and 2"},
            {"role": "assistant", "content": "3"},
        ],
        [],
        [2, 4],
    )
    plain = only_item(tmp_path, {"instruction": "Say {input}.", "input": "", "output": "3"}, chat_template=False)
    assert plain.prompt.endswith("### Instruction:\nSay {input}.\n\n### Response:\n")
    assert plain.completion == "3"


def test_text_and_tokens(tmp_path: Path) -> None:
    items = load(
        tmp_path, {"text": "once"}, {"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}, chat_template=False
    ).items
    assert items == [Text("", "once"), Tokens([4, 5, 6], [False, True, True])]


@pytest.mark.parametrize(
    "switch", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"masked": True}]
)
def test_loss_switches_are_honoured(tmp_path: Path, switch: dict[str, Any]) -> None:
    data = load(tmp_path, {"messages": [QUESTION, {**ANSWER, **switch}, QUESTION, ANSWER]})
    assert data.items == [Conversation([QUESTION, ANSWER, QUESTION, ANSWER], [], [3])]
    assert data.dropped == SWITCHED_OFF


@pytest.mark.parametrize("switch", [{"weight": 1}, {"train": True}, {"loss": True}, {"masked": False}])
def test_switched_on_is_trained(tmp_path: Path, switch: dict[str, Any]) -> None:
    data = load(tmp_path, {"messages": [QUESTION, {**ANSWER, **switch}]})
    assert data.items == [Conversation([QUESTION, ANSWER], [], [1])]


def test_a_record_that_is_switched_off(tmp_path: Path) -> None:
    data = load(tmp_path, {"messages": [QUESTION, ANSWER]}, {"prompt": "a", "completion": "b", "weight": 0})
    assert (len(data.items), data.dropped) == (1, SWITCHED_OFF)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        {"messages": [QUESTION, ANSWER], "id": 7, "source": "web"},
        {"messages": [QUESTION], "id": 8},
        {"messages": []},
        {"messages": [ANSWER, QUESTION, {**ANSWER, "content": ""}]},
        {"prompt": "a", "completion": ""},
    )
    assert data.dropped == {
        "without an assistant's answer": 2,
        "answers with nothing before them": 1,
        "empty answers": 1,
        "with an empty completion": 1,
    }
    assert data.unused == {"id": 2, "source": 1}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a JSON list"),
        ({"label": "hi"}, "line 2: has the fields 'label'"),
        ({}, r"line 2: has the fields \(none\)"),
        ({"prompt": "hi", "completion": 3}, "line 2: .* texts"),
        ({"prompt": "hi", "completion": [ANSWER]}, "line 2: .*texts, or both lists"),
        ({"messages": "hi"}, "line 2: messages is 'hi'"),
        ({"messages": [{"content": "hi"}]}, r"line 2: messages\[0\].role"),
        ({"messages": [QUESTION, {"role": ["user"], "content": "hi"}]}, r"line 2: messages\[1\].role is \['user'\]"),
        ({"messages": [{"role": "user", "content": 3}]}, r"line 2: messages\[0\].content is 3"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, r"line 2: messages\[0\]: unknown role 'robot'"),
        ({"messages": [{**QUESTION, "content": [{"type": "image", "url": "x"}]}]}, r"content\[0\].type is 'image'"),
        ({"messages": [QUESTION, {**CALL, "tool_calls": [{"function": {}}]}]}, r"tool_calls\[0\].function.name"),
        ({"messages": [{**QUESTION, "tool_calls": CALL["tool_calls"]}, ANSWER]}, r"\[0\]: .*user .*tool"),
        ({"messages": [QUESTION, {**ANSWER, "weight": 0.5}]}, r"messages\[1\].weight is 0.5"),
        ({"messages": [QUESTION, ANSWER], "weight": 0.5}, "weight is 0.5"),
        ({"messages": [QUESTION, ANSWER], "tools": {"name": "add"}}, "tools is {'name': 'add'}"),
        ({"messages": [QUESTION, ANSWER], "tools": "add"}, "tools .*not JSON"),
        ({"messages": [QUESTION, ANSWER], "tools": [{"name": 3}]}, r"tools\[0\].name is 3"),
        ({"messages": [QUESTION, ANSWER], "chat_template_kwargs": 3}, "chat_template_kwargs is 3"),
        ({"messages": [{**QUESTION, "role": "system"}, QUESTION, ANSWER], "system": "hi"}, "leave out one"),
        ({"conversations": [{"from": "human", "value": None}]}, r"conversations\[0\].value is None"),
        ({"instruction": "a", "output": 3}, "output is 3"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "history is"),
        ({"text": 3}, "text is 3"),
        ({"input_ids": [1, 2]}, "labels"),
        ({"input_ids": [1, -2], "labels": [1, 2]}, r"input_ids\[1\] is -2"),
        ({"input_ids": [1, 2], "labels": [1]}, "input_ids has 2 .*labels has 1"),
        ({"input_ids": [1, 2], "labels": [1, 3]}, r"labels\[1\] is 3: .* 2 "),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [0, 1]}, r"attention_mask\[0\] is 0"),
        ('{"text": "a", "text": "b"}', "'text' .*twice"),
        ('{"text": NaN}', "NaN"),
        (r'{"text": "\ud83d"}', "surrogate"),
        ('{"text": ' + "[" * 100 + "]" * 100 + "}", "deeper than 64"),
        ('{"text": ' + "[" * 200_000, "line 2: "),
        ('{"text": ' + "1" * 5000 + "}", "line 2: not JSON"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(LokiError, match=message) as caught:
        load(tmp_path, {"messages": [QUESTION, ANSWER]}, record)
    assert "line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"held-out data .*absent\.jsonl .*exist"):
        load_training_data(tmp_path / "absent.jsonl", chat_template=True, what="held-out data")
    with pytest.raises(LokiError, match="it is empty"):
        load(tmp_path)
    with pytest.raises(LokiError, match=r"\(2 without .*answer"):
        load(tmp_path, {"messages": [QUESTION]}, {"messages": [QUESTION]})
    with pytest.raises(LokiError, match=r"line 1: .*conversation.* chat template"):
        load(tmp_path, {"messages": [QUESTION, ANSWER]}, chat_template=False)


def test_equal_data_has_an_equal_digest(tmp_path: Path) -> None:
    digests = [load(tmp_path, {"text": "a", "id": number}).digest for number in range(2)]
    assert digests[0] == digests[1] != load(tmp_path, {"text": "b"}).digest
