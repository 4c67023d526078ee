"""Option values that need more parsing than Typer does."""

import re

from loki.errors import LokiError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """A number of bytes: `8GiB`, `500MB`, `1000000`.

    Raises:
        LokiError: if `text` is not a positive size.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) *(|[kmg]i?)b?", text.strip().lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not size:
        raise LokiError(f"{text!r} is not a size in bytes: write 8GiB, 500MB or 1000000")
    return size


def parse_quotas(text: str) -> list[float]:
    """Percentages separated by commas: `5,10,20,30`.

    Raises:
        LokiError: if `text` is something else, or names a quota twice.
    """
    try:
        quotas = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LokiError(f"{text!r} are not quotas: write percentages separated by commas, as in 5,10,20,30") from error
    if len(set(quotas)) < len(quotas):
        raise LokiError(f"{text!r} names a quota twice: write each once")
    return quotas


def parse_batch_size(text: str) -> int | str:
    """A number of samples, or `auto`.

    Raises:
        LokiError: if `text` is neither.
    """
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise LokiError(f"batch size {text!r} is not a number: write a number, or auto") from error


def parse_numbers(text: str) -> list[float]:
    """Numbers separated by commas: `0.5,0.7,1`.

    Raises:
        LokiError: if `text` is something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LokiError(f"{text!r} are not numbers: write them separated by commas, as in 0.5,0.7,1") from error


def parse_percent(text: str, option: str) -> float:
    """A percentage: `1%` or `1`.

    Raises:
        LokiError: if `text` is something else, or negative.
    """
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise LokiError(f"{option} {text!r} is not a percentage: write 1% or 0.5%")
    return value
