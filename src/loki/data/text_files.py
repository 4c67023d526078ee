"""Text files as people have them: with or without byte-order mark, with CRLF, gzipped; and JSON Lines in them."""

import gzip
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loki.data.json_text import parse_json
from loki.errors import LokiError

_GZIP = b"\x1f\x8b"
_LFS_POINTER = "version https://git-lfs.github.com/spec/"


def read_text(path: Path, *, what: str) -> str:
    """A file's text: UTF-8, or UTF-16 with a byte-order mark; gzipped or not.

    Args:
        path: the file.
        what: its role, for error messages ("training data").

    Raises:
        LokiError: if it does not exist, is no text, a damaged gzip file, or the pointer that git-lfs leaves behind.
    """
    if not path.is_file():
        raise LokiError(f"{what} {path} does not exist: check the path")
    content = path.read_bytes()
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise LokiError(f"{what} {path} is a damaged gzip file ({error}): fetch it again") from error
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise LokiError(f"{what} {path} is not UTF-8 text ({error})") from error
    if text.startswith(_LFS_POINTER):
        raise LokiError(f"{what} {path} is a Git LFS pointer, not the file itself: run `git lfs pull` there")
    return text


def read_json_lines(path: Path, *, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, or of a JSON array in a file, each with where it stands.

    Empty lines are skipped, but counted.

    Args:
        path: the file.
        what: its role, for error messages.

    Raises:
        LokiError: for what `read_text` refuses; names the line (or the record of an array) that is no JSON object.
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
