"""Reading JSON files within bounds: of size, of depth, and nothing that is no text."""

import json
from pathlib import Path
from typing import Any

from loki.errors import LokiError, one_line
from loki.inputs.places import require_file

MAX_DEPTH = 64
MAX_BYTES = 2**28  # the largest tokenizers take 40 MB


def read_json(path: Path, *, what: str, advice: str = "check the path", limit: int = MAX_BYTES) -> Any:
    """Read a JSON file; `what` names its role in error messages ("positions file").

    Args:
        path: the file.
        what: its role.
        advice: what to do where it does not exist.
        limit: the most bytes that it may have.

    Raises:
        LokiError: if the file is missing, too large, unreadable, no UTF-8 text, not JSON, nested deeper than
            `MAX_DEPTH`, or holds half a surrogate pair.
    """
    size = require_file(path, what, advice=advice)
    if size > limit:
        raise LokiError(f"{what} {path} has {size:,} bytes, and no more than {limit:,} make sense: name another file")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits, and of deep nesting
        raise LokiError(
            f"{what} {path} is not JSON ({one_line(error)}): name another file, or fetch it again"
        ) from error
    except OSError as error:
        raise LokiError(f"{what} {path} cannot be read ({error.strerror}): check the disk and the path") from error
    _check(value, f"{what} {path}")
    return value


def _check(value: Any, origin: str) -> None:
    """Refuse what would fail later: at the depth of a copy, or when a text is written."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise LokiError(f"{origin} is nested deeper than {MAX_DEPTH} levels: no such file is")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
                _check_texts(item, origin)
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                _check_texts((item,), origin)
        level = inner


def _check_texts(texts: Any, origin: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            around = ascii(text[max(0, error.start - 10) : error.end + 10])
            raise LokiError(f"{origin} holds half a surrogate pair, which is no text: {around}") from error
