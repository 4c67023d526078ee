"""Running one command on hostile input in a process of its own, with bounds on time and memory, and judging it.

The process is forked from one that has imported everything, so that an input takes a fraction of a second.
"""

import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CPU_SECONDS = 10
WALL_SECONDS = 180  # the cores may be shared with much else
MEMORY_BYTES = 3 * 2**30
_OUTPUT_BYTES = 2**28  # of any file that a command writes


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: its exit code; negative for a signal.
        out: standard output.
        err: standard error.
        seconds: processor time.
        before: contents of its folder before, by relative path; see `snapshot`.
        after: the same, afterwards.
        outputs: what it may change where it succeeds.
    """

    code: int
    out: str
    err: str
    seconds: float
    before: dict[str, Any]
    after: dict[str, Any]
    outputs: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.code == -signal.SIGXCPU and self._at_work():
            return ""
        if self.code < 0:
            name = signal.Signals(-self.code).name
            return f"hangs or is killed ({name} after {self.seconds:.0f} s)"
        if "Traceback (most recent call last)" in self.err:
            return "traceback: " + (self.err.strip().splitlines() or [""])[-1][:200]
        if self.code not in (0, 1, 2, 3):  # 1 and 3 are verdicts
            return f"exit code {self.code}: {self.err[-200:]!r}"
        changed = [name for name, found in self.before.items() if self.after.get(name) != found]
        if self.code != 2:
            changed = [name for name in changed if not name.startswith(self.outputs or ("/",))]
        # In the folder of an unfinished run it may work, and drop what is damaged, whatever comes of it.
        own = tuple(name for name in self.outputs if name.endswith(".partial")) or ("/",)
        changed = [name for name in changed if not name.startswith(own)]
        if changed:
            return f"exit code {self.code}, input changed: {', '.join(changed[:5])}"
        added = [name for name in self.after if name not in self.before and not name.startswith(own)]
        left = [name for name in added if self.code == 2 or Path(name).suffix in (".tmp", ".old", ".gone")]
        if left:
            return f"exit code {self.code}, left behind: {', '.join(left[:5])}"
        return self._line_problem() if self.code == 2 else ""

    def _at_work(self) -> bool:
        """Whether it said twice or more how far it had come: much data takes long, and a hang shows no progress."""
        return len(set(re.findall(r"^.* \d+ of \d+ \(\d+%\), .* left$", self.err, re.MULTILINE))) >= 2

    def _line_problem(self) -> str:
        lines = self.err.splitlines()
        if len(lines) != 1 or not lines[0].startswith("error: "):
            return f"exit code {self.code} with {len(lines)} lines: {self.err[:400]!r}"
        if len(lines[0]) > 1500:
            return f"a line of {len(lines[0])} characters: {lines[0][:200]!r}"
        return ""


def snapshot(folder: Path) -> dict[str, Any]:
    """Every file below `folder` with its kind, size and content, without reading devices or pipes."""
    found: dict[str, Any] = {}
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(root, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = ("link", str(path.readlink()))
            elif path.is_dir():
                found[key] = "folder"
            elif path.is_file():
                found[key] = (path.stat().st_size, hash(path.read_bytes()) if path.stat().st_size < 2**26 else None)
            else:
                found[key] = "special"
    return found


def run_in_child(
    folder: Path, work: Callable[[], object], *, cpu_seconds: int = CPU_SECONDS, outputs: tuple[str, ...] = ()
) -> Outcome:
    """Call `work` in a forked process whose working directory is `folder`.

    Args:
        folder: where it works; standard output and error are kept beside it.
        work: what it does; its `SystemExit` is the exit code.
        cpu_seconds: processor time after which it is killed.
        outputs: what it may change where it succeeds, as relative paths.
    """
    before = snapshot(folder)
    streams = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_child(folder, work, streams, cpu_seconds)
    deadline = time.monotonic() + WALL_SECONDS
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    seconds = usage.ru_utime + usage.ru_stime
    out, err = (path.read_text(errors="replace") for path in streams)
    for path in streams:
        path.unlink()
    return Outcome(os.waitstatus_to_exitcode(status), out, err, seconds, before, snapshot(folder), outputs)


def loki(*words: object) -> Callable[[], object]:
    """Work for `run_in_child`: `loki WORDS...`."""

    def work() -> None:
        from loki.cli import main

        sys.argv = ["loki", *map(str, words)]
        main()

    return work


def _be_child(folder: Path, work: Callable[[], object], streams: list[Path], cpu_seconds: int) -> None:
    code = 70
    try:
        for number, path in zip((1, 2), streams, strict=True):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)
        # pytest may have put its own objects in their place; the command's consoles look them up when they print.
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
        address_space = psutil.Process().memory_info().vms + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_OUTPUT_BYTES, _OUTPUT_BYTES))
        try:
            work()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
