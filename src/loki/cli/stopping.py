"""Being asked to stop: Ctrl-C, and the signal that schedulers and `kill` send before they use force."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143  # exit codes, as shells give them
_MOMENT = 0.02  # seconds


class Stopping:
    """Whether this process was asked to stop.

    Attributes:
        code: exit code for it; None where it was not asked.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._number = signal.SIGINT
        self._again: threading.Timer | None = None

    def ask(self, number: int, frame: FrameType | None) -> NoReturn:
        """Handle the signal: an exception ends the work, so that what is unfinished is put away as after an error."""
        del frame
        self.code = TERMINATED if number == signal.SIGTERM else INTERRUPTED
        self._number = signal.Signals(number)
        raise KeyboardInterrupt

    def ask_again(self) -> None:
        """Ask a moment later: Python ignores an exception that comes up while an object is put away."""
        self._again = threading.Timer(_MOMENT, _thread.interrupt_main, (self._number,))
        self._again.daemon = True
        self._again.start()

    def end(self) -> None:
        """Ask no more."""
        if self._again is not None:
            self._again.cancel()


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Have both signals end the work of the block in order.

    A signal that the caller ignores or handles is left to it. So are both in a process among several, whose launcher
    ends them: one that waits for the others would not come to handle it.
    """
    stop = Stopping()
    before: dict[signal.Signals, object] = {}
    if threading.current_thread() is threading.main_thread() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        ordinary = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        before = {number: handler for number, handler in ordinary.items() if signal.getsignal(number) == handler}
    for number in before:
        signal.signal(number, stop.ask)
    ignored = sys.unraisablehook

    def unless_asked(found: "sys.UnraisableHookArgs") -> None:
        if stop.code is not None and found.exc_type is KeyboardInterrupt:
            stop.ask_again()
        else:
            ignored(found)

    sys.unraisablehook = unless_asked
    try:
        yield stop
    finally:
        stop.end()
        sys.unraisablehook = ignored
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
