"""Saying what differs between two records, for people: settings by their values, content without its hashes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_HASH = re.compile(r"[0-9a-f]{16,}")
_CONTENT = {
    "model_fingerprint": "weights of the model",
    "config_digest": "configuration of the model",
    "source_digest": "calibration data",
    "calibration": "calibration data",
    "moments_data": "texts of the moments",
    "data": "training data",
    "eval_data": "held-out data",
    "positions": "positions",
    "keep": "data of --keep",
    "replay": "data of --replay",
}


def changes(found: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The entries of `now` that were different, as a text `seed was 42, now 7; other training data`; empty if none."""
    different = [key for key, value in now.items() if found.get(key) != value]
    return "; ".join(_content(key, found, now) or f"{key} was {found.get(key)}, now {now[key]}" for key in different)


def differences(first: Mapping[str, Any], second: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The named entries that are not equal, as texts `steps 7 and 9`, `other weights of the model`."""
    return [
        _content(name, first, second) or f"{name} {first.get(name)} and {second.get(name)}"
        for name in names
        if first.get(name) != second.get(name)
    ]


def _content(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """What to say of two hashes that differ; empty for other values."""
    values = [value for value in (first.get(name), second.get(name)) if value is not None]
    if not all(isinstance(value, str) and _HASH.fullmatch(value) for value in values):
        return ""
    return f"other {_CONTENT.get(name, f'content of {name}')}"
