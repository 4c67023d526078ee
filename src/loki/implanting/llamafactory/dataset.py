"""Training data in the forms that LlamaFactory reads: token ids, or records for one of its own templates."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from trl import pack_dataset

from loki.data.chat import OTHER_NAMES
from loki.data.examples import TrainingRecords
from loki.data.messages import ASSISTANT, Message, parsed_arguments
from loki.data.records import Conversation, Tokens
from loki.errors import LokiError
from loki.files import atomic_directory, atomic_file

Entry = dict[str, Any]

# LlamaFactory's template that adds nothing: what it reads is tokenised already.
NO_TEMPLATE = "empty"
_FUNCTION = "function_call"
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "system_tag": "system",
    "user_tag": "user",
    "assistant_tag": ASSISTANT,
    "observation_tag": "tool",
    "function_tag": _FUNCTION,
}


def write_tokenised(train: Dataset, held_out: Dataset | None, path: Path, *, packed_to: int | None) -> None:
    """Write examples as LlamaFactory's `tokenized_path` takes them: the very tokens that TRL would see.

    Args:
        train: what to train on; columns `input_ids` and `completion_mask`, see `loki.data.fitting.TrainingData`.
        held_out: what to compute the held-out loss on, if anything.
        path: directory to write; replaced if it exists.
        packed_to: put several examples into one sequence of at most so many tokens; None leaves them apart.
    """
    splits = DatasetDict({"train": _labelled(train, packed_to)})
    if held_out:
        splits["validation"] = _labelled(held_out, None)
    with atomic_directory(path, overwrite=True) as temporary:
        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            splits.save_to_disk(str(temporary))
        finally:
            if shown:
                enable_progress_bars()


def write_dataset(records: TrainingRecords, path: Path) -> Entry:
    """Write records for one of LlamaFactory's own templates: one JSON line per trained answer, which is its last turn.

    Args:
        records: conversations, or texts with a prompt.
        path: JSONL file to write; replaced if it exists.

    Returns:
        The entry for `dataset_info.json`.

    Raises:
        LokiError: if a record is something that LlamaFactory has no form for; names its place.
    """
    kinds = {isinstance(item, Conversation) for item in records.items}
    if len(kinds) > 1:
        raise LokiError(f"{records.what} mixes texts and conversations, which LlamaFactory reads apart: split it")
    lines: list[dict[str, Any]] = []
    for item, origin in zip(records.items, records.origins, strict=True):
        try:
            if isinstance(item, Conversation):
                lines += [_sharegpt(item, answer) for answer in item.trained]
            elif isinstance(item, Tokens) or not item.prompt:
                raise LokiError("has no prompt, which LlamaFactory's templates need: leave out --template")
            else:
                lines.append({"prompt": item.prompt, "completion": item.completion})
        except LokiError as error:
            raise LokiError(f"{records.what} {origin}: {error}") from error
    with atomic_file(path, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    entry: Entry = {"file_name": str(path.resolve())}
    if kinds == {False}:
        return {**entry, "columns": {"prompt": "prompt", "response": "completion"}}
    columns = {"messages": "messages", "tools": "tools"}
    return {**entry, "formatting": "sharegpt", "columns": columns, "tags": _TAGS}


def _labelled(data: Dataset, packed_to: int | None) -> Dataset:
    """Columns `input_ids`, `attention_mask` and `labels`."""
    if packed_to is not None:
        packed = pack_dataset(data, packed_to, "bfd")
        data = packed.select_columns(["input_ids", "completion_mask"])

    def label(example: dict[str, list[int]]) -> dict[str, list[int]]:
        pairs = zip(example["input_ids"], example["completion_mask"], strict=True)
        return {
            "labels": [token if trained else -100 for token, trained in pairs],
            "attention_mask": [1] * len(example["input_ids"]),
        }

    return Dataset.from_list([{"input_ids": row["input_ids"], **label(row)} for row in data])


def _sharegpt(conversation: Conversation, answer: int) -> dict[str, Any]:
    """A conversation up to an answer in LlamaFactory's ShareGPT form, its tools as JSON in a text.

    Raises:
        LokiError: if turns do not alternate, or a message holds what the form has no place for.
    """
    if conversation.template_options:
        raise LokiError("has chat_template_kwargs, which LlamaFactory's templates do not take: leave out --template")
    messages = [_turn(message) for message in conversation.messages[: answer + 1]]
    turns = [message["role"] for message in messages if message["role"] != "system"]
    answering = (ASSISTANT, _FUNCTION)
    alternate = all((role in answering) == bool(index % 2) for index, role in enumerate(turns))
    if not alternate or len(turns) % 2 or any(message["role"] == "system" for message in messages[1:]):
        raise LokiError(
            "users (or tools) and assistants do not alternate, as LlamaFactory's templates require: "
            "leave out --template"
        )
    tools = [tool.get("function", tool) for tool in conversation.tools]
    return {"messages": messages, "tools": json.dumps(tools, ensure_ascii=False) if tools else ""}


def _turn(message: Message) -> dict[str, str]:
    known = {"role", "content", "tool_calls", "name", "tool_call_id"}
    if more := [field for field, value in message.items() if field not in known and value]:
        raise LokiError(f"a message has {more[0]}, which LlamaFactory has no form for: leave out --template")
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    role = str(OTHER_NAMES.get(message["role"], message["role"]))
    calls = message.get("tool_calls")
    if not calls:
        return {"role": role, "content": content}
    if content:
        raise LokiError(
            "a message has a text beside its calls, which LlamaFactory has no form for: leave out --template"
        )
    functions = [parsed_arguments(call)["function"] for call in calls]
    called = [{"name": function["name"], "arguments": function.get("arguments") or {}} for function in functions]
    return {"role": _FUNCTION, "content": json.dumps(called, ensure_ascii=False)}
