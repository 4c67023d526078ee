"""Commands killed (-9) as they change a file, then run again: the outcome must be that of an undisturbed run.

`python -m tests.faults.kill [FAULTS [COMMAND ...]]` tries so many points (default: all) of every command, or of those
named, and prints how many.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from tests.faults.children import Child
from tests.faults.commands import (
    COMMANDS,
    DEAR,
    PLACE,
    contents,
    make_inputs,
    not_as_given,
    undisturbed,
    words_of,
)
from tests.hostile.sandbox import loki

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "tempfile.mkstemp", "tempfile.mkdtemp"}
FEW = 3  # at most, of the commands that take many seconds


def run(folder: Path, words: tuple[str, ...], *, kill_at: int | None = None) -> tuple[int, int]:
    """Run a command in a forked process.

    Args:
        folder: where.
        words: of the command line.
        kill_at: at which change of a file it is killed; None lets it end.

    Returns:
        Its exit code, negative for a signal, and the number of changes where it ended.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(folder, loki(*words), kill_at, writing)
    os.close(writing)
    with os.fdopen(reading) as told:
        count = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(count or 0)


def _be_child(folder: Path, work: Callable[[], object], kill_at: int | None, writing: int) -> None:
    code, count = 1, 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or opened) and str(arguments[0]).startswith((str(folder), PLACE, ".")):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        os.chdir(folder)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        torch.set_num_threads(1)
        sys.addaudithook(watch)
        try:
            work()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        os.write(writing, str(count).encode())
    finally:
        os._exit(code)


def try_command(inputs: Path, name: str, faults: int | None, chance: random.Random, *, overwrite: bool) -> int:
    """Kill one command at its changes, each time starting from the inputs alone (or from a finished output).

    Args:
        inputs: the folder that `make_inputs` filled.
        name: of the command.
        faults: at how many changes, drawn by chance; None tries all.
        chance: draws them.
        overwrite: an output stands there already, and is replaced.

    Returns:
        How many were tried.
    """
    words = words_of(name, overwrite=overwrite)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary, "scratch").resolve()
        expected = undisturbed(inputs, scratch, name)
        if not overwrite:
            shutil.rmtree(scratch / PLACE)
            (scratch / PLACE).mkdir()
        code, count = run(scratch, words)
        assert (code, count > 0) == (0, True), f"loki {' '.join(words)} exits with {code}, {count} changes"
        points = list(range(1, count + 1))
        most = min(FEW, count) if name in DEAR else count
        if faults is not None or most < count:
            points = sorted(chance.sample(points, min(most if faults is None else faults, most)))
        for point in points:
            shutil.rmtree(scratch)
            shutil.copytree(inputs, scratch)
            if overwrite:
                run(scratch, words)
            assert run(scratch, words, kill_at=point)[0] == -signal.SIGKILL, (words, point)
            assert not not_as_given(inputs, scratch), (words, point)
            # Where it was killed after the last rename, the output is there, and the same command says so.
            again = Child(scratch, words).wait()
            done = not overwrite and ("exists already" in again.err or "finished training" in again.err)
            assert again.code == 0 or done, (words, point, again.err)
            assert not expected.differences(contents(scratch)), (words, point, expected.differences(contents(scratch)))
        return len(points)


def main(faults: int | None, names: Iterable[str], seed: int = 0) -> int:
    """Try commands; the number of faults."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary, "inputs")
        make_inputs(inputs)
        return sum(
            try_command(inputs, name, faults, chance, overwrite=overwrite)
            for name in names
            for overwrite in (False, True)
        )


if __name__ == "__main__":
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else None, sys.argv[2:] or COMMANDS), "faults tried")
