"""Training data: JSONL records of three shapes, as TRL's prompt and completion."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from loki.errors import LokiError

Message = dict[str, str]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_SHAPES = '"messages", "prompt" and "completion", or "conversations"'


@dataclass(frozen=True)
class TrainingData:
    """What a model is to be trained on.

    Attributes:
        dataset: columns `prompt` and `completion`, both texts or both lists of messages. Loss is taken on completions.
        lines: which line of the file each example comes from.
        dropped: number of records left out, by reason.
    """

    dataset: Dataset
    lines: list[int]
    dropped: dict[str, int]

    def __str__(self) -> str:
        text = f"{len(self.dataset)} training examples"
        if self.dropped:
            text += "; dropped " + ", ".join(f"{count} ({reason})" for reason, count in self.dropped.items())
        return text


def load_training_data(path: Path, *, chat_template: bool) -> TrainingData:
    """Read a JSONL file of conversations or prompts.

    A record is `{"messages": [{"role", "content"}, ...]}`, `{"prompt", "completion"}` (texts), or in ShareGPT style
    `{"conversations": [{"from", "value"}, ...], "system"?}` with the roles human or user, gpt or assistant, system,
    observation or tool, and function_call. Every assistant turn of a conversation becomes one example: what comes
    before it is the prompt.

    Args:
        path: the file.
        chat_template: whether the tokenizer has a chat template, which conversations need.

    Raises:
        LokiError: if the file is missing, empty or not JSONL, a record has other fields, conversations and plain texts
            are mixed, conversations meet a tokenizer without a chat template, or no example is left.
    """
    if not path.is_file():
        raise LokiError(f"training data {path} does not exist: check the path")
    examples: list[dict[str, Any]] = []
    lines: list[int] = []
    dropped: Counter[str] = Counter()
    kinds: dict[bool, int] = {}
    for number, record in _records(path):
        made, reason = _examples(record, f"{path}, line {number}")
        if reason:
            dropped[reason] += 1
        for example in made:
            kinds.setdefault(isinstance(example["prompt"], str), number)
        examples += made
        lines += [number] * len(made)
    if not examples:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        raise LokiError(f"training data {path} has no usable record ({why})")
    if len(kinds) == 2:
        raise LokiError(
            f"training data {path} mixes texts (line {kinds[True]}) and conversations (line {kinds[False]}): split it"
        )
    if False in kinds and not chat_template:
        raise LokiError(
            f"training data {path} holds conversations, but the tokenizer has no chat template: "
            'give it one, or write the records as "prompt" and "completion"'
        )
    return TrainingData(Dataset.from_list(examples), lines, dict(dropped))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except UnicodeDecodeError:
                    raise
                except ValueError as error:  # not JSON, or a number that Python will not read
                    raise LokiError(f"{path}, line {number} is not JSON ({error})") from error
                if not isinstance(record, dict):
                    raise LokiError(f"{path}, line {number} is no JSON object: expected one with {_SHAPES}")
                yield number, record
        except UnicodeDecodeError as error:
            raise LokiError(f"training data {path} is not UTF-8 text ({error})") from error


def _examples(record: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], str]:
    """The examples in one record, and why there is none."""
    if "prompt" in record and "completion" in record:
        prompt, completion = record["prompt"], record["completion"]
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise LokiError(f'{where}: "prompt" and "completion" must be texts')
        return ([{"prompt": prompt, "completion": completion}], "") if completion else ([], "with an empty completion")
    if "messages" in record:
        turns = _turns(record["messages"], "role", "content", where)
    elif "conversations" in record:
        turns = _turns(record["conversations"], "from", "value", where)
        if record.get("system"):
            turns = [{"role": "system", "content": str(record["system"])}, *turns]
    else:
        raise LokiError(f"{where} has the fields {', '.join(record) or 'none'}: expected {_SHAPES}")
    made = [
        {"prompt": turns[:index], "completion": [turn]}
        for index, turn in enumerate(turns)
        if turn["role"] == "assistant" and index and turn["content"]
    ]
    return made, "" if made else "without an assistant's answer"


def _turns(value: Any, role_key: str, content_key: str, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise LokiError(f"{where}: expected a list of messages")
    turns = []
    for message in value:
        if not isinstance(message, dict) or role_key not in message or not isinstance(message.get(content_key), str):
            raise LokiError(f'{where}: every message needs "{role_key}" and a text "{content_key}"')
        if message[role_key] not in _ROLES:
            raise LokiError(f"{where}: unknown role {message[role_key]!r}: use one of {', '.join(_ROLES)}")
        turns.append({"role": _ROLES[message[role_key]], "content": message[content_key]})
    return turns
