"""Progress of work that is deep below the command that shows it: reading and tokenising data, for one."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.progress import Progress

T = TypeVar("T")

_SHOWN: ContextVar[Progress | None] = ContextVar("shown", default=None)
_EVERY = 100  # items between two updates


@contextmanager
def shown_on(progress: Progress) -> Iterator[None]:
    """Let `tracked` show on a progress while the block runs."""
    token = _SHOWN.set(progress)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def tracked(items: Collection[T], what: str) -> Iterator[T]:
    """The items, while their number is shown where the command shows progress, and nowhere else.

    Args:
        items: to be gone through.
        what: is done with them, "reading the data".
    """
    progress = _SHOWN.get()
    if progress is None:
        yield from items
        return
    task = progress.add_task(what, total=len(items))
    try:
        for number, item in enumerate(items, start=1):
            yield item
            if number % _EVERY == 0:
                progress.update(task, completed=number)
    finally:
        progress.remove_task(task)
