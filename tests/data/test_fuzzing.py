"""Whatever stands in a file of records, it becomes examples or one line that says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loki.data.examples import load_training_data
from loki.data.fitting import fit_to_model
from loki.errors import LokiError
from tests.data.templates import WITH_TOOLS, tokenizer_with

_FIELDS = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "text",
    "input_ids",
    "labels",
    "attention_mask",
    "tools",
    "functions",
    "chat_template_kwargs",
    "weight",
    "train",
    "loss",
    "masked",
    "role",
    "content",
    "from",
    "value",
    "tool_calls",
    "function_call",
    "function",
    "name",
    "arguments",
    "parameters",
    "type",
    "id",
    "reasoning_content",
    "tool_call_id",
]
_TEXTS = st.sampled_from(
    ["", "hi", "user", "assistant", "tool", "system", "human", "gpt", "function_call", "text", "{}", '{"name": "f"}']
) | st.text(max_size=8)
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 400) | st.floats() | _TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
_CALLS = st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": _TEXTS, "arguments": _ANY})}), max_size=2
)
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "function"]) | _ANY},
    optional={
        "content": _TEXTS | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _TEXTS})) | _ANY,
        "tool_calls": _CALLS | _ANY,
        "reasoning_content": _TEXTS | _ANY,
        "weight": st.sampled_from([0, 1]) | _ANY,
        "name": _ANY,
    },
)
_TOOL = st.fixed_dictionaries({"name": _TEXTS}, optional={"parameters": _ANY, "description": _ANY})
_RECORD = st.one_of(
    st.dictionaries(st.sampled_from(_FIELDS), _ANY, max_size=4),
    st.fixed_dictionaries(
        {"messages": st.lists(_MESSAGE, max_size=4)},
        optional={"tools": st.lists(_TOOL | _ANY, max_size=2), "chat_template_kwargs": _ANY},
    ),
    st.fixed_dictionaries({"conversations": st.lists(st.fixed_dictionaries({"from": _TEXTS, "value": _TEXTS}))}),
    st.fixed_dictionaries({"prompt": _TEXTS, "completion": _TEXTS}),
    st.fixed_dictionaries({"input_ids": st.lists(st.integers(-1, 400)), "labels": st.lists(st.integers(-100, 400))}),
    _ANY,
)


def _try(path: Path, style: str | None) -> None:
    tokenizer = tokenizer_with(WITH_TOOLS[style] if style else None)
    try:
        records = load_training_data(path, chat_template=bool(style))
        data = fit_to_model(records, tokenizer, 300, vocab_size=320)
    except LokiError as error:
        assert "\n" not in str(error)
        return
    assert len(data.dataset) == len(data.origins) > 0
    for row in data.dataset:
        assert len(row["input_ids"]) == len(row["completion_mask"]) <= 300
        assert any(row["completion_mask"][1:])


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.lists(_RECORD, max_size=3), st.sampled_from([*WITH_TOOLS, None]))
def test_arbitrary_records(tmp_path_factory: pytest.TempPathFactory, records: list[Any], style: str | None) -> None:
    path = tmp_path_factory.getbasetemp() / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    _try(path, style)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60), st.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "jsonl.gz"]))
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes.{suffix}"
    path.write_bytes(content)
    _try(path, None)
