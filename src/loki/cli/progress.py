"""The progress bar of the commands."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loki.cli.app import error_console


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A bar on standard error with the count done, the time taken and the time left; it vanishes when done.

    None where standard error is not a terminal.
    """
    if not error_console.is_interactive:
        yield None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=error_console, transient=True) as progress:
        yield progress
