"""How far a command has come: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from loki.cli.output import console, error_console
from loki.progress import shown_on

_SECONDS_BETWEEN_LINES = 30.0
_PART_BETWEEN_LINES = 0.05
_LEAST_SECONDS = 3.0  # what is over sooner needs no line


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Shows on standard error how much is done, the time taken and the time left.

    On a terminal these are bars, which vanish when they are full. Elsewhere a line is written every 30 seconds and
    whenever another 5% is done, but nothing for what takes no more than a few seconds. None with `--quiet`.
    """
    if console.quiet or error_console.quiet:
        yield None
        return
    if not error_console.is_interactive:
        lines = ProgressLines(error_console)
        with shown_on(lines):
            yield lines
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bars = _Bars(TextColumn("{task.description}"), *columns, console=error_console, transient=True)
    with bars as bar, shown_on(bar):
        console.bar = bar
        try:
            yield bar
        finally:
            console.bar = None


class _Bars(Progress):
    """Bars of what is not finished yet."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """What is shown now."""
        yield self.make_tasks_table([task for task in self.tasks if not task.finished])


class ProgressLines(Progress):
    """A progress that writes plain lines: `training 40 of 200 (20%), 3.1 a second, 0:00:52 left`.

    Args:
        speaker: where to write.
    """

    def __init__(self, speaker: Console) -> None:
        super().__init__(console=Console(quiet=True), auto_refresh=False)
        self._speaker = speaker
        self._began: dict[TaskID, tuple[float, float]] = {}  # when, and how much was done then
        self._said: dict[TaskID, tuple[float, float]] = {}  # the same of the last line

    def add_task(self, description: str, *args: Any, **fields: Any) -> TaskID:
        """As in rich."""
        task = super().add_task(description, *args, **fields)
        self._began[task] = self._said[task] = (time.monotonic(), self.tasks[-1].completed)
        return task

    def update(self, task_id: TaskID, *args: Any, **fields: Any) -> None:
        """As in rich; a line is written where one is due."""
        super().update(task_id, *args, **fields)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As in rich; a line is written where one is due."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now, task = time.monotonic(), self._tasks[task_id]
        (said, done), (began, before) = self._said[task_id], self._began[task_id]
        if not task.total or task.completed <= max(done, before):
            return
        waited, part = now - said, (task.completed - done) / task.total
        if waited < _LEAST_SECONDS or (waited < _SECONDS_BETWEEN_LINES and part < _PART_BETWEEN_LINES):
            return
        self._said[task_id] = (now, task.completed)
        rate = (task.completed - before) / (now - began)
        left = timedelta(seconds=round((task.total - task.completed) / rate))
        speed = f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"
        self._speaker.print(
            f"{task.description} {task.completed:g} of {task.total:g} ({task.completed / task.total:.0%}), {speed}, "
            f"{left} left"
        )
