"""Conversations become the tokens that the chat template gives the raw record, and exactly answers are trained."""

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loki.errors import LokiError
from tests.data.loading import fit, texts
from tests.data.templates import HERMES, LLAMA3, NO_TOOLS, PARTS, QWEN, WITH_TOOLS, tokenizer_with
from tests.tiny_models import tiny_tokenizer

SYSTEM, USER = {"role": "system", "content": "be brief"}, {"role": "user", "content": "1 + 2?"}
ANSWER, RESULT = {"role": "assistant", "content": "three"}, {"role": "tool", "tool_call_id": "c1", "content": "3"}
FUNCTION = {"name": "add", "arguments": {"a": 1, "b": [2, "ü"]}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
    },
}
RECORD = {"messages": [USER, CALL, RESULT, ANSWER, USER, ANSWER], "tools": [TOOL]}


def reference(record: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """Of every assistant's turn, the tokens of the raw record up to it, and which of them the prompt lacks."""
    expected = []
    for index, message in enumerate(record["messages"]):
        if message["role"] == "assistant":
            options = {"tools": record.get("tools"), "tokenize": True, "return_dict": False}
            ids = tokenizer.apply_chat_template(record["messages"][: index + 1], **options)
            prompt = tokenizer.apply_chat_template(record["messages"][:index], add_generation_prompt=True, **options)
            assert ids[: len(prompt)] == prompt
            expected.append((ids, [0] * len(prompt) + [1] * (len(ids) - len(prompt))))
    return expected


@pytest.mark.parametrize("style", WITH_TOOLS)
@pytest.mark.parametrize("system", [False, True])
def test_tools_are_the_tokens_of_the_raw_record(tmp_path: Path, style: str, system: bool) -> None:
    tokenizer = tokenizer_with(WITH_TOOLS[style])
    record = {**RECORD, "messages": ([SYSTEM] if system else []) + RECORD["messages"]}  # type: ignore[operator]
    data = fit(tmp_path, copy.deepcopy(record), tokenizer=tokenizer)
    assert [(row["input_ids"], row["completion_mask"]) for row in data.dataset] == reference(record, tokenizer)
    assert len(data.dataset) == 3
    assert '"add"' in texts(data, tokenizer)[0][0]
    assert '{"a": 1, "b": [2, "ü"]}' in texts(data, tokenizer)[0][1]


def test_parallel_calls_and_results(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(QWEN)
    calls = {**CALL, "tool_calls": CALL["tool_calls"] * 2}  # type: ignore[operator]
    record = {"messages": [USER, calls, RESULT, RESULT, ANSWER], "tools": [TOOL]}
    data = fit(tmp_path, record, tokenizer=tokenizer)
    assert [(row["input_ids"], row["completion_mask"]) for row in data.dataset] == reference(record, tokenizer)
    with pytest.raises(LokiError, match=r"line 1: .*refuses .*\(This model only supports single"):
        fit(tmp_path, record, tokenizer=tokenizer_with(LLAMA3))


def test_arguments_in_a_text_are_not_quoted_again(tmp_path: Path) -> None:
    text = {**CALL, "tool_calls": [{"function": {"name": "add", "arguments": '{"a":1}'}}]}
    given = {"messages": [USER, text], "tools": [TOOL]}
    as_it_is = fit(tmp_path, given, tokenizer=tokenizer_with(QWEN))
    assert '"arguments": {"a":1}}' in texts(as_it_is)[0][1]  # what this template does with a text
    for template in (LLAMA3, HERMES):
        assert '{"a": 1}}' in texts(fit(tmp_path, given, tokenizer=tokenizer_with(template)))[0][1]


@pytest.mark.parametrize("tools", ['[{"name": "add", "parameters": {}}]', [{"name": "add", "parameters": {}}]])
def test_bare_tools_reach_a_template_that_wants_an_envelope(tmp_path: Path, tools: Any) -> None:
    data = fit(tmp_path, {"messages": [USER, CALL], "tools": tools}, tokenizer=tokenizer_with(HERMES))
    assert '{"type": "function", "function": {"name": "add"' in texts(data)[0][0]


def test_tools_without_a_place_for_them_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"line 1: .*tools.* chat template"):
        fit(tmp_path, {"messages": [USER, ANSWER], "tools": [TOOL]}, tokenizer=tokenizer_with(NO_TOOLS))
    with pytest.raises(LokiError, match=r"leaves out .*calls"):
        fit(tmp_path, {"messages": [USER, CALL, RESULT, ANSWER]}, tokenizer=tokenizer_with(NO_TOOLS))


def test_contents_in_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "1 + "}, {"type": "text", "text": "2?"}]
    record = {"messages": [{"role": "user", "content": parts}, ANSWER]}
    assert texts(fit(tmp_path, record, tokenizer=tokenizer_with(NO_TOOLS)))[0] == (
        "<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n",
        "three<|im_end|>\n",
    )
    assert texts(fit(tmp_path, {"messages": [USER, ANSWER]}, tokenizer=tokenizer_with(PARTS)))[0] == (
        "<|user|>1 + 2?<|end|><|assistant|>",
        "three<|end|>",
    )


def test_roles_that_the_template_does_not_know_get_their_other_name(tmp_path: Path) -> None:
    record = {"messages": [{**SYSTEM, "role": "developer"}, USER, CALL, {**RESULT, "role": "function"}, ANSWER]}
    data = fit(tmp_path, record, tokenizer=tokenizer_with(QWEN))
    shown = texts(data)[1][0]
    assert "<|im_start|>system\nbe brief" in shown
    assert "<tool_response>\n3" in shown
    assert data.notes["conversations with messages of developer, given as system"] == 1
    known = fit(tmp_path, {"messages": [*record["messages"][:2], ANSWER]}, tokenizer=tokenizer_with(NO_TOOLS))
    assert "<|im_start|>developer\nbe brief" in texts(known)[0][0]


def test_a_role_that_the_template_leaves_out_is_an_error(tmp_path: Path) -> None:
    template = HERMES.replace("'system')", "'nobody')")
    with pytest.raises(LokiError, match=r"leaves out .*'system'"):
        fit(tmp_path, {"messages": [SYSTEM, USER, ANSWER]}, tokenizer=tokenizer_with(template))


def test_thinking_that_history_loses_is_trained_where_it_is_the_answer(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(QWEN)
    thinking = {**ANSWER, "reasoning_content": "1 and 2"}
    record = {"messages": [USER, thinking, USER, thinking]}
    data = fit(tmp_path, record, tokenizer=tokenizer)
    assert [(row["input_ids"], row["completion_mask"]) for row in data.dataset] == reference(record, tokenizer)
    answer = "<think>\n1 and 2\n</think>\n\nthree<|im_end|>\n"
    assert [trained for _, trained in texts(data)] == [answer, answer]
    assert "<think>" not in texts(data)[1][0]
    assert not data.notes
    left_out = fit(tmp_path, record, tokenizer=tokenizer_with(NO_TOOLS)).notes
    assert left_out == {"reasoning_content of assistant, which the chat template leaves out": 2}


def test_fields_that_the_template_leaves_out_are_counted(tmp_path: Path) -> None:
    record = {"messages": [{**USER, "name": "Ada"}, {**CALL, "content": "I add."}, RESULT, ANSWER], "tools": [TOOL]}
    notes = fit(tmp_path, *[record] * 5, tokenizer=tokenizer_with(LLAMA3)).notes
    assert notes == {
        "name of user, which the chat template leaves out": 5,
        "content beside a call of assistant, which the chat template leaves out": 5,
        "tool_call_id of tool, which the chat template leaves out": 5,
    }


def test_a_prompt_that_opens_what_the_answer_does_not(tmp_path: Path) -> None:
    opens = NO_TOOLS.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    data = fit(tmp_path, {"messages": [USER, ANSWER]}, tokenizer=tokenizer_with(opens))
    assert texts(data)[0][1] == "three<|im_end|>\n"
    assert sum(data.notes.values()) == 1


def test_a_template_that_shows_the_system_message_only_when_it_asks(tmp_path: Path) -> None:
    mistral = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] "
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ message.content }}[/INST]{% elif message.role == 'assistant' %} {{ message.content }}</s>"
        "{% endif %}{% endfor %}"
    )
    data = fit(tmp_path, {"messages": [SYSTEM, USER, ANSWER]}, tokenizer=tokenizer_with(mistral))
    assert texts(data)[0] == ("<s>[INST] be brief\n\n1 + 2?[/INST]", " three</s>")


def test_texts_end_with_the_end_of_text(tmp_path: Path) -> None:
    records = [{"prompt": "2 + 2 =", "completion": " 4"}, {"prompt": "3 =", "completion": " 3</s>"}, {"text": "abc"}]
    data = fit(tmp_path, *records)
    assert texts(data) == [("2 + 2 =", " 4</s>"), ("3 =", " 3</s>"), ("", "abc</s>")]


def test_a_token_that_prompt_and_answer_share_is_trained_and_said(tmp_path: Path) -> None:
    # "<s>" written over the border is one token.
    data = fit(tmp_path, {"prompt": "a<", "completion": "s>b"})
    assert texts(data) == [("a", "<s>b</s>")]
    assert data.notes == {"answers whose first characters share a token with the end of their prompt": 1}


def test_doubled_beginning_is_avoided_and_said(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("{{ bos_token }}" + NO_TOOLS)
    tokenizer.add_bos_token = True
    data = fit(tmp_path, {"messages": [{**USER, "role": "user"}, ANSWER]}, tokenizer=tokenizer)
    assert data.dataset[0]["input_ids"][:2].count(0) == 1
    assert not data.notes
    doubled = tokenizer_with("{{ bos_token }}{{ bos_token }}" + NO_TOOLS)
    data = fit(tmp_path, {"messages": [USER, ANSWER]}, tokenizer=doubled)
    assert data.dataset[0]["input_ids"][:2].count(0) == 1
    assert texts(data)[0][1] == "three<|im_end|>\n"
    assert sum(data.notes.values()) == 1


def test_input_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    row = fit(tmp_path, {"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}, tokenizer=tiny_tokenizer(False)).dataset[0]
    assert row == {"input_ids": [4, 5, 6], "completion_mask": [0, 1, 1]}


@pytest.mark.parametrize("field", ["weight", "loss_weight", "train", "training", "trainable", "loss"])
def test_loss_switches_are_honoured(tmp_path: Path, field: str) -> None:
    record = {"messages": [USER, {**ANSWER, field: 0}, USER, ANSWER]}
    data = fit(tmp_path, record, tokenizer=tokenizer_with(QWEN))
    assert len(data.dataset) == 1


@pytest.mark.parametrize("value", [0, False, 1, "text"])
def test_an_unknown_field_is_counted_whatever_its_value(tmp_path: Path, value: object) -> None:
    data = fit(tmp_path, {"messages": [USER, {**ANSWER, "odd": value}]}, tokenizer=tokenizer_with(QWEN))
    assert data.notes == {"odd of assistant, which the chat template leaves out": 1}
