"""Texts to measure models on: files of the user's, and a small general text that comes with the package."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loki.errors import LokiError
from loki.inputs import read_json_lines, read_text

GENERAL = "general text"
_GENERAL_FILE = Path(__file__).with_name("general.jsonl")


@dataclass(frozen=True)
class TextSource:
    """Texts from one place.

    Attributes:
        name: what to call it in tables.
        texts: the texts.
    """

    name: str
    texts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Hash of the texts."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()[:32]


def general_text() -> TextSource:
    """The text that comes with the package: facts, code, dialogue and arithmetic, some thousand tokens in all."""
    return TextSource(GENERAL, read_texts(_GENERAL_FILE).texts)


def text_sources(files: Sequence[Path] | None) -> list[TextSource]:
    """The named files, or the general text where an empty list names none; nothing for None.

    Raises:
        LokiError: if a file cannot be read, or two have the same name.
    """
    if files is None:
        return []
    sources = [read_texts(path) for path in files] or [general_text()]
    names = [source.name for source in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LokiError(f"two files with text are called {twice}: rename one, to tell their results apart")
    return sources


def read_texts(path: Path) -> TextSource:
    """Read a text file as one text, or a JSONL file of `{"text": ...}` as one text per line.

    Raises:
        LokiError: if the file is missing, empty, no text, or a line of JSONL holds no text.
    """
    if path.suffix == ".jsonl":
        texts = [_text_of(record, where) for where, record in read_json_lines(path, what="text")]
    else:
        texts = [read_text(path, what="text")]
    if not any(text.strip() for text in texts):
        raise LokiError(f"text {path} is empty: give some text")
    return TextSource(path.name, tuple(texts))


def _text_of(record: dict[str, Any], where: str) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise LokiError(f'{where} has no "text": expected {{"text": "..."}}')
    return text
