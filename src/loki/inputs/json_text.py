"""JSON from outside: strict, bounded in depth, and never anything but valid text."""

import json
from typing import Any

from loki.errors import LokiError

MAX_DEPTH = 64


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        LokiError: if it is not JSON, names a field twice, nests deeper than `MAX_DEPTH`, or holds half a
            surrogate pair.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except LokiError:
        raise
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits, and of deep nesting
        raise LokiError(f"not JSON ({error})") from error
    check_depth(value)
    if "\\u" in text:
        check_unicode(value)
    return value


def check_depth(value: Any) -> None:
    """Refuse what nests deeper than `MAX_DEPTH`: templates and tokenizers would run out of stack on it.

    Raises:
        LokiError: if it does.
    """
    level, depth = [value], 0
    while level := [child for parent in level for child in _children(parent)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise LokiError(f"nested deeper than {MAX_DEPTH} levels: no file that LoKI reads is")


def check_unicode(value: Any) -> None:
    r"""Refuse texts with half a surrogate pair (`"\ud83d"` alone), which no tokenizer takes.

    Raises:
        LokiError: quotes what stands around it.
    """
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError as error:
                around = ascii(item[max(0, error.start - 10) : error.end + 10])
                raise LokiError(f"holds half a surrogate pair, which is not text: {around}") from error
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            stack += item


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LokiError(f"the field {twice!r} stands twice in an object: leave one of them out")
    return fields


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
