"""Reading JSON and JSON Lines files within bounds: of size, of depth, and without half surrogate pairs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loki.errors import LokiError, one_line
from loki.inputs.json_text import check_depth, check_unicode, parse_json
from loki.inputs.places import require_file
from loki.inputs.text_files import read_text

MAX_BYTES = 2**28  # the largest tokenizers take 40 MB


def read_json(path: Path, *, what: str, advice: str = "check the path", limit: int = MAX_BYTES) -> Any:
    """Read a JSON file; `what` names its role in error messages ("positions file").

    Args:
        path: the file.
        what: its role.
        advice: what to do where it does not exist.
        limit: the most bytes that it may have.

    Raises:
        LokiError: if the file is missing, too large, unreadable, no UTF-8 text, not JSON, nested too deeply
            (`check_depth`), or holds half a surrogate pair.
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
    try:
        check_depth(value)
        check_unicode(value)
    except LokiError as error:
        raise LokiError(f"{what} {path}: {error}") from error
    return value


def read_json_lines(path: Path, *, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, or of a JSON array in a file, each with where it stands.

    Empty lines are skipped, but counted.

    Args:
        path: the file.
        what: its role, for error messages.

    Raises:
        LokiError: for what `read_text` refuses; names the line (or the record of an array) that is not a JSON object.
    """
    text = read_text(path, what=what)
    if text.lstrip()[:1] == "[" and (array := _array(text, path, what)) is not None:
        for number, record in enumerate(array, start=1):
            where = f"{path}, record {number}"
            yield where, _object(record, f"{what} {where}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                record = parse_json(line)
            except LokiError as error:
                raise LokiError(f"{what} {where}: {error}") from error
            yield where, _object(record, f"{what} {where}")


def _array(text: str, path: Path, what: str) -> list[Any] | None:
    """The array that the whole text is; None for lines that are arrays, which are refused one by one."""
    first = text.lstrip().split("\n", 1)[0]
    try:
        value = parse_json(text)
    except LokiError as error:
        try:
            parse_json(first)
        except LokiError:
            raise LokiError(f"{what} {path}: {error}") from error
        return None
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise LokiError(f"{where}: a JSON {type(record).__name__} instead of an object: one object per line")
    return record
