"""Commands in forked processes of their own, which can be disturbed in many ways."""

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.hostile.sandbox import loki

TIMEOUT = 300.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative for a signal, None where it hung.
        out: standard output.
        err: standard error.
        seconds: how long it took.
    """

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def problem(self) -> str:
        """What is wrong with what it said; empty if nothing is."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code is None:
            return "hangs"
        if "Traceback (most recent call last)" in self.err or "Exception ignored" in self.err:
            return f"traceback: {self.err[-300:]!r}"
        if self.code > 0 and (len(lines) != 1 or not self.err.splitlines()[-1].startswith("error: ")):
            return f"exit code {self.code} with {len(lines)} lines of error: {self.err[-300:]!r}"
        return f"exit code 0 with an error: {lines[0]}" if not self.code and lines else ""


class Child:
    """`loki WORDS...`, started in a forked process.

    Args:
        folder: its working directory.
        words: of the command line.
        stdout: "pipe"; "gone", a pipe that nobody reads; "closed"; "both closed", standard error as well; "full",
            a device that is full.
        prepare: called in the process before the command.
    """

    def __init__(
        self,
        folder: Path,
        words: tuple[str, ...],
        *,
        stdout: str = "pipe",
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        out, err = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(folder, words, stdout, prepare, out, err)
        for written in (out[1], err[1]):
            os.close(written)
        self._said = {out[0]: b"", err[0]: b""}
        self._open = list(self._said)

    def wait(self, *, signal_after: float | None = None, number: int = signal.SIGKILL) -> Ended:
        """Wait for its end.

        Args:
            signal_after: seconds from its start after which it gets a signal; None sends none.
            number: of the signal.
        """
        deadline = self._started + TIMEOUT
        at = deadline if signal_after is None else self._started + signal_after
        hung, status = False, None
        while status is None:
            ready, _, _ = select.select(self._open, [], [], min(max(at - time.monotonic(), 0), 0.02))
            for handle in ready:
                self._read(handle)
            if time.monotonic() >= at:
                hung = at >= deadline
                os.kill(self.pid, signal.SIGKILL if hung else number)
                at = deadline if not hung else at + TIMEOUT
            pid, found = os.waitpid(self.pid, os.WNOHANG)
            status = found if pid else None
        seconds = time.monotonic() - self._started
        for handle in list(self._open):
            os.set_blocking(handle, False)
            while handle in self._open:
                try:
                    self._read(handle)
                except BlockingIOError:  # a process of its own that it left still holds the other end
                    self._close(handle)
        out, err = (text.decode(errors="replace") for text in self._said.values())
        return Ended(None if hung else os.waitstatus_to_exitcode(status), out, err, seconds)

    def _read(self, handle: int) -> None:
        text = os.read(handle, 2**16)
        self._said[handle] += text
        if not text:
            self._close(handle)

    def _close(self, handle: int) -> None:
        os.close(handle)
        self._open.remove(handle)


def _be_child(
    folder: Path,
    words: tuple[str, ...],
    stdout: str,
    prepare: Callable[[], object],
    out: tuple[int, int],
    err: tuple[int, int],
) -> None:
    code = 70
    try:
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(os.open("/dev/full", os.O_WRONLY) if stdout == "full" else out[1], 1)
        os.dup2(err[1], 2)
        os.closerange(3, 256)
        if stdout == "gone":
            reading, writing = os.pipe()
            os.dup2(writing, 1)
            os.close(reading)
            os.close(writing)
        closed = {"closed": (1,), "both closed": (1, 2)}.get(stdout, ())
        for number in closed:
            os.close(number)
        # As Python does it when it starts.
        sys.stdout, sys.stderr = (
            None if number in closed else os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False)
            for number in (1, 2)
        )
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)
        prepare()
        code = _run(words)
    finally:
        os._exit(code)


def _run(words: tuple[str, ...]) -> int:
    code = 1
    try:
        loki(*words)()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        if sys.stderr:
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):  # as Python does it when it ends
        try:
            if stream:
                stream.flush()
        except OSError:
            code = 120
    return code
