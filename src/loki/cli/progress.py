"""The progress bar of the commands."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loki.cli.app import error_console


def progress_bar() -> Progress:
    """A bar on standard error with the count done, the time taken and the time left; it vanishes when done.

    Nothing is shown where standard error is not a terminal.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=error_console,
        transient=True,
        disable=not error_console.is_interactive,
    )
