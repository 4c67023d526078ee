"""Training data in the form that LlamaFactory reads, with the entry in `dataset_info.json` that describes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from loki.data.examples import TrainingData
from loki.errors import LokiError
from loki.files import atomic_file

Entry = dict[str, Any]

TEXT_TEMPLATE = "empty"  # LlamaFactory's template that adds nothing to prompt and answer
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "system_tag": "system",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
}


def write_dataset(
    data: TrainingData, path: Path, tokenizer: PreTrainedTokenizerBase, *, template: str | None
) -> tuple[Entry, str | None]:
    """Write examples for LlamaFactory: one JSON line per trained answer, which is its last turn.

    Args:
        data: what to train on.
        path: JSONL file to write; replaced if it exists.
        tokenizer: the model's. Texts get its first and last token here, as TRL gives them; `empty` would add none.
        template: name of a LlamaFactory template, or None for what fits: the tokenizer's own chat template for
            conversations, `empty` for texts.

    Returns:
        The entry for `dataset_info.json`, and the template to use; None for the tokenizer's own.

    Raises:
        LokiError: if no example is left, because users (or tools) and assistants do not alternate in any.
    """
    examples = data.dataset.to_list()
    if isinstance(examples[0]["prompt"], str):
        records = _texts(examples, tokenizer) if template is None else iter(examples)
        entry: Entry = {"columns": {"prompt": "prompt", "response": "completion"}}
        template = template or TEXT_TEMPLATE
    else:
        records = _conversations(examples, data)
        entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _TAGS}
    with atomic_file(path, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as lines:
        written = 0
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            written += 1
        if not written:
            raise LokiError(f"no usable record is left for LlamaFactory: {data}")
    return {"file_name": str(path.resolve()), **entry}, template


def _texts(examples: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, str]]:
    first = tokenizer.decode(tokenizer("")["input_ids"])
    last = tokenizer.eos_token or ""
    for example in examples:
        completion = example["completion"]
        yield {
            "prompt": first + example["prompt"],
            "completion": completion if completion.endswith(last) else completion + last,
        }


def _conversations(examples: list[dict[str, Any]], data: TrainingData) -> Iterator[dict[str, Any]]:
    reason = "whose turns do not alternate, as LlamaFactory requires"
    for example in examples:
        messages = [*example["prompt"], *example["completion"]]
        turns = [message["role"] for message in messages if message["role"] != "system"]
        alternate = all((role == "assistant") == bool(index % 2) for index, role in enumerate(turns))
        leading = all(message["role"] != "system" for message in messages[1:])
        if alternate and leading and len(turns) % 2 == 0:
            yield {"messages": messages}
        else:
            data.dropped[reason] = data.dropped.get(reason, 0) + 1
