"""Whatever a library raises while it reads a user's file, as one line."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from loki.errors import LokiError, one_line, out_of_memory

FETCH_AGAIN = "fetch or save it again"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPEAKERS = ("", "transformers", "datasets", "huggingface_hub", "accelerate", "peft", "torch")  # "" is the root


@contextmanager
def reading(
    what: str,
    path: str | Path,
    *,
    advice: str = FETCH_AGAIN,
    problem: str = "cannot be read",
    silent: bool = False,
) -> Iterator[None]:
    """Give everything that goes wrong in the block one line; the library's own error is its cause (`--debug`).

    Put into it only what a library does with the file: an error of our own code would be taken for a damaged file.
    A full disk and full memory pass, since the file is not to blame for them. What libraries log and warn of
    is said after the block, and not at all where it fails: the line says it.

    Args:
        what: the file's role, "scores file".
        path: the file, or the directory that is read.
        advice: what to do about it.
        problem: what any error means.
        silent: the library says nothing meanwhile, so nothing need be held back, which takes longer than reading a
            small tensor.

    Raises:
        LokiError: for any error in the block.
    """
    try:
        with nullcontext() if silent else _held_back():
            yield
    except (LokiError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library written in Rust is not an Exception
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        if out_of_memory(error) and not isinstance(error, MemoryError):
            raise
        raise LokiError(f"{what} {path} {problem} ({_reason(error)}): {advice}") from error


@contextmanager
def _held_back() -> Iterator[None]:
    """Keep what libraries log and warn of until the block ends, and forget it where it fails."""
    records: list[tuple[list[logging.Handler], logging.LogRecord]] = []
    loggers = [logging.getLogger(name) for name in _SPEAKERS]
    handlers = [logger.handlers for logger in loggers]
    for logger, own in zip(loggers, handlers, strict=True):
        if own or logger.parent is None:
            logger.handlers = [_Keeps(records, own or [handler for handler in [logging.lastResort] if handler])]
    try:
        with warnings.catch_warnings(record=True) as warned:
            yield
    finally:
        for logger, own in zip(loggers, handlers, strict=True):
            logger.handlers = own
    for kept, record in records:
        for handler in kept:
            if record.levelno >= handler.level:
                handler.handle(record)
    for warning in warned:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


class _Keeps(logging.Handler):
    """Keeps records, each with the handlers that it was meant for."""

    def __init__(
        self, records: list[tuple[list[logging.Handler], logging.LogRecord]], handlers: list[logging.Handler]
    ) -> None:
        super().__init__()
        self._records, self._handlers = records, handlers

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append((self._handlers, record))


def shown(value: Any, limit: int = 60) -> str:
    """A value from outside for a message: in ASCII, and cut where it is long."""
    text = ascii(value if not isinstance(value, (str, bytes)) else value[: 2 * limit])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    # A KeyError's text is the key alone.
    return f"{type(error).__name__}: {one_line(error)}" if isinstance(error, LookupError) else one_line(error)
