"""Real tool calls (the Berkeley function calling leaderboard, where it is at hand) with a tokenizer that has merges."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.loading import fit
from tests.data.templates import WITH_TOOLS, tokenizer_with
from tests.data.test_tokenising import reference

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "text"
COUNT = 40


def records() -> list[dict[str, Any]]:
    """A call and an answer each."""

    def lines(name: str) -> list[Any]:
        return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()[:COUNT]]

    made = []
    for given, answer in zip(lines("bfcl_simple_python.jsonl"), lines("bfcl_simple_python_answers.jsonl"), strict=True):
        [(name, arguments)] = answer["ground_truth"][0].items()
        call = {"name": name, "arguments": {key: values[0] for key, values in arguments.items()}}
        made.append(
            {
                "messages": [
                    *given["question"][0],
                    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
                    {"role": "tool", "name": name, "content": json.dumps({"result": 3})},
                    {"role": "assistant", "content": "It is 3."},
                ],
                "tools": [{"type": "function", "function": function} for function in given["function"]],
            }
        )
    return made


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the shared data is not at hand")
@pytest.mark.parametrize("style", WITH_TOOLS)
def test_tokens_of_real_calls_are_those_of_the_raw_records(tmp_path: Path, style: str) -> None:
    given = records()
    plain = tokenizer_with(WITH_TOOLS[style])
    tokenizer = plain.train_new_from_iterator(map(json.dumps, given), vocab_size=1000)
    tokenizer.chat_template = plain.chat_template
    data = fit(tmp_path, *given, tokenizer=tokenizer)
    expected = [example for record in given for example in reference(record, tokenizer)]
    assert [(row["input_ids"], row["completion_mask"]) for row in data.dataset] == expected
    assert len(data.dataset) == 2 * COUNT
    assert max(max(row["input_ids"]) for row in data.dataset) > 320  # merges took part
