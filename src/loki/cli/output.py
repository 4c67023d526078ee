"""What a command says: lines on standard output, errors and warnings on standard error, a log file, one JSON object."""

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from loki.errors import LokiError, one_line

_TIME = "%Y-%m-%d %H:%M:%S"  # at the beginning of every line of a log
_LOG_BEGIN = rb"\d{4}-\d\d-\d\d "
# Of the processes that `accelerate launch` or `torchrun` starts, only the main one speaks.
_SILENT = os.environ.get("RANK", "0") != "0"


class Speaker(Console):
    """A console whose lines stay whole and plain, go into the log as well, and never share a line with a bar.

    Where its stream cannot be written to, it falls silent, and the work goes on.

    Args:
        stderr: write to standard error.

    Attributes:
        lost: why it fell silent, if it did.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=_SILENT, highlight=False)
        self.bar: Progress | None = None
        self.log_console: Console | None = None
        self.lost: OSError | None = None

    def print(self, *objects: Any, **options: Any) -> None:
        """As in rich; a running bar is taken away meanwhile."""
        if all(isinstance(item, str) for item in objects):
            options.setdefault("soft_wrap", True)
        if self.log_console is not None and not _SILENT:
            self.log_console.print(f"{datetime.now():{_TIME}}", *objects, **options)
        bar = self.bar
        if bar is None or self.quiet or self is bar.console:
            self._print(*objects, **options)
            return
        bar.stop()
        try:
            self._print(*objects, **options)
        finally:
            bar.start()

    def on_broken_pipe(self) -> None:
        """As of any stream that cannot be written to; rich would end the program."""
        self.fall_silent(BrokenPipeError())

    def fall_silent(self, error: OSError) -> None:
        """Write no more; what is left in the stream's buffer goes nowhere, or Python would fail on it when it ends."""
        self.lost = self.lost or error
        self.quiet = True
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)

    def _print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.fall_silent(error)


console = Speaker()
error_console = Speaker(stderr=True)
_values: dict[str, Any] = {}
_log_file: IO[str] | None = None
_json = False


def say(text: str, **values: Any) -> None:
    """Print what a command did; with `--json`, `values` become part of the object that it ends with.

    Args:
        text: a line, taken literally.
        values: the same in machine-readable form: numbers, texts, paths, lists of them.
    """
    _values.update(values)
    console.print(escape(text))


def warn(text: str) -> None:
    """Print a warning, which `--quiet` does not silence."""
    error_console.print(f"[yellow]warning:[/] {escape(text)}")


@contextmanager
def warnings_as_lines(category: type[Warning]) -> Iterator[None]:
    """Show the first warning of a category in the block as one line, and those after it not at all."""
    said = False
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_once(message: Warning | str, kind: type[Warning], *place: object) -> None:
            nonlocal said
            if not issubclass(kind, category):
                show(message, kind, *place)  # type: ignore[arg-type]
            elif not said:
                said = True
                warn(str(message))

        warnings.showwarning = show_once  # type: ignore[assignment]
        warnings.simplefilter("always", category)
        yield


@contextmanager
def speaking(*, quiet: bool, as_json: bool, log_file: Path | None) -> Iterator[None]:
    """Speak as the options of one command say, until the block ends.

    Args:
        quiet: print nothing but errors and warnings.
        as_json: keep standard output free for the object of `end_with_json`; lines go to standard error.
        log_file: file that all lines are added to as well, with the time.

    Raises:
        LokiError: if the log file cannot be written, or is another file than a log.
    """
    global _log_file, _json
    _values.clear()
    if log_file is not None:
        _refuse_other_file(log_file)
    try:
        _log_file = log_file.open("a", encoding="utf-8") if log_file else None
    except OSError as error:
        raise LokiError(f"--log-file {log_file} cannot be written ({error.strerror}): name another") from error
    _json = as_json
    console.lost = error_console.lost = None
    console.stderr = as_json
    console.quiet, error_console.quiet = quiet or _SILENT, _SILENT
    console.log_console = error_console.log_console = (
        Console(file=_log_file, width=120, highlight=False) if _log_file else None
    )
    try:
        yield
    finally:
        console.stderr = False
        console.quiet = error_console.quiet = _SILENT
        console.log_console = error_console.log_console = None
        if _log_file:
            _log_file.close()


def _refuse_other_file(log_file: Path) -> None:
    """Refuse to add lines to what is no log: it may be the data that the command reads."""
    if not log_file.is_file():
        return
    try:
        with log_file.open("rb") as stream:
            begin = stream.read(len("2000-01-01 "))
    except OSError:
        return  # opening it to write says why
    if begin and not re.fullmatch(_LOG_BEGIN, begin):
        raise LokiError(f"--log-file {log_file} holds something other than a log of loki: name another")


def end_with_json(command: str, code: int, error: str | None = None) -> None:
    """With `--json`, print one object: the command, its exit code, its error if any, and all that `say` was told."""
    if _json and not _SILENT:
        failure = {"error": error} if error else {}
        try:
            print(json.dumps({"command": command, "exit_code": code, **failure, **_values}, default=str), flush=True)
        except OSError as error:
            console.stderr = False
            console.fall_silent(error)


def unsaid() -> str | None:
    """Why standard output has not got all that was said; None where it has, or where its reader has gone by itself."""
    if console.lost is None or isinstance(console.lost, BrokenPipeError):
        return None
    reason = console.lost.strerror or one_line(console.lost)
    return f"standard output cannot be written ({reason}): the command has done its work, and not all of it is said"


def open_closed_streams() -> None:
    """Have standard input, output and error lead nowhere where the caller closed them (`>&-`).

    Otherwise the next file that is opened gets the number of one, and what a library writes to standard output would
    go into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
