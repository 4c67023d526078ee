"""Training data and positions for the tests of LlamaFactory, and a tokenizer for them."""

import json
from pathlib import Path
from typing import Any

POSITIONS = [[1, 30], [], [0, 4, 5]]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write_records(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_chats(path: Path) -> Path:
    """Conversations of two questions each."""

    def ask(first: int, second: int) -> list[dict[str, str]]:
        return [turn("user", f"{first} + {second}"), turn("assistant", str(first + second))]

    return write_records(path, *({"messages": ask(a, b) + ask(b, a)} for a in range(4) for b in range(4)))
