"""Commands disturbed in every way that a machine knows, and run again.

Signals at random moments, full disks, limits on the size of files, places that cannot be written to, a standard output
that nobody reads, and two processes on one output. Whatever happens: what was read and what stood there is whole,
nothing is half written, the command says one line or has done its work, and the same command again succeeds and leaves
what an undisturbed one leaves, and nothing else.

`python -m tests.faults.disturb --faults 500` prints how many faults of each kind were tried, and how many ended wrong.
"""

import argparse
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.children import Child, Ended
from tests.faults.commands import (
    ANEW,
    COMMANDS,
    CONTINUED,
    DEAR,
    OUTPUT,
    PLACE,
    Expected,
    contents,
    leftovers,
    make_inputs,
    not_as_given,
    undisturbed,
    words_of,
)

_START = 0.1  # seconds in which a forked process comes to the command
_ROOM = 2**28  # bytes of the file system that is made for a fault


@dataclass(frozen=True)
class Try:
    """One fault of one command.

    Attributes:
        inputs: the folder that `make_inputs` filled.
        scratch: a copy of it, in which the command works.
        name: of the command.
        overwrite: its output stands there already, and is replaced.
        expected: what an undisturbed run leaves.
        chance: draws moments and sizes.
    """

    inputs: Path
    scratch: Path
    name: str
    overwrite: bool
    expected: Expected
    chance: random.Random

    def child(self, *, stdout: str = "pipe", prepare: Callable[[], object] = lambda: None) -> Child:
        """Start the command."""
        return Child(self.scratch, words_of(self.name, overwrite=self.overwrite), stdout=stdout, prepare=prepare)

    def moment(self) -> float:
        """A moment of its run, in seconds from its start; not before it runs at all."""
        return self.chance.uniform(_START, _START + 1.02 * self.expected.seconds)

    def after_failure(self, ended: Ended, *codes: int) -> Iterator[str]:
        """What is wrong after it was stopped."""
        if ended.problem:
            yield ended.problem
        if ended.code not in (0, *codes):
            yield f"exit code {ended.code}: {ended.err[-200:]!r}"
        if changed := not_as_given(self.inputs, self.scratch):
            yield f"input changed: {changed}"
        if self.overwrite and self.name not in ANEW:
            other = [name for name in self.different() if f"{name}/".startswith(f"{OUTPUT}/")]
            if other:
                yield f"what stood there is not whole: {other}"

    def different(self) -> list[str]:
        """What is not as an undisturbed run leaves it."""
        return self.expected.differences(contents(self.scratch))

    def again(self) -> Iterator[str]:
        """What is wrong with the same command once more, and with what it leaves."""
        ended = self.child().wait()
        finished = "exists already" in ended.err or "finished training" in ended.err  # by the disturbed one
        if ended.code != 0 and not (finished and not self.overwrite):
            yield f"the same command again: exit code {ended.code}, {ended.err[-300:]!r}"
        if other := self.different():
            yield f"after the same command again: {other}"


def _stopped(number: signal.Signals, *codes: int) -> Callable[[Try], Iterator[str]]:
    def fault(of: Try) -> Iterator[str]:
        ended = of.child().wait(signal_after=of.moment(), number=number)
        if number == signal.SIGKILL:
            if changed := not_as_given(of.inputs, of.scratch):
                yield f"input changed: {changed}"
        else:
            yield from of.after_failure(ended, *codes)
        yield from of.again()

    return fault


@contextmanager
def _file_system(place: Path) -> Iterator[None]:
    """Put a folder on a file system of its own, with what it holds."""
    held = shutil.copytree(place, place.with_name("held"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOM}", "tmpfs", str(place)], check=True)
    try:
        shutil.copytree(held, place, dirs_exist_ok=True)
        shutil.rmtree(held)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def _on_disk(of: Try, options: Callable[[Path], str]) -> Iterator[str]:
    """Run with the output on a file system that was mounted again with `options`, and then on one with room."""
    place = of.scratch / PLACE
    with _file_system(place):
        before = contents(place)
        _remount(place, options(place))
        ended = of.child().wait()
        yield from of.after_failure(ended, 2)
        left = sorted(contents(place).keys() - before.keys())
        if ended.code == 2 and left and of.name not in {*CONTINUED, *ANEW}:
            yield f"left behind: {left}"
        _remount(place, f"rw,size={_ROOM}")
        yield from of.again()


def _full(of: Try) -> Iterator[str]:
    def size(place: Path) -> str:
        pages = -(-sum(path.stat().st_blocks for path in place.rglob("*")) // 8) + 2
        return f"size={4 * (pages + of.chance.randrange(of.expected.size // 4096 + 1))}k"

    return _on_disk(of, size)


def _read_only(of: Try) -> Iterator[str]:
    return _on_disk(of, lambda _: "ro")


def _read_only_inputs(of: Try) -> Iterator[str]:
    """Everything that is read lies on a file system that cannot be written to: that is no fault."""
    folder = of.scratch.with_name("read-only")
    shutil.copytree(of.inputs, folder)
    try:
        with _file_system(folder):
            output = folder.with_name("elsewhere")
            _remount(folder, "ro")
            ended = Child(folder, words_of(of.name, output)).wait()
            if ended.problem or ended.code:
                yield f"exit code {ended.code}, {ended.problem}"
            made = {name.removeprefix(f"{OUTPUT}/") for name in of.expected.files if name.startswith(f"{OUTPUT}/")}
            if made != contents(output).keys():
                yield f"other files than without it: {sorted(made ^ contents(output).keys())}"
            shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder)


def _limited(of: Try) -> Iterator[str]:
    limit = of.chance.randrange(of.expected.largest + 1)

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = of.child(prepare=prepare).wait()
    yield from of.after_failure(ended, 2)
    yield from of.again()


def _output_closed(how: str, *codes: int) -> Callable[[Try], Iterator[str]]:
    def fault(of: Try) -> Iterator[str]:
        ended = of.child(stdout=how).wait()
        if ended.problem or ended.code not in codes:
            yield f"exit code {ended.code}: {ended.problem or ended.err[-300:]}"
        if other := of.different():
            yield f"its work is not done: {other}"

    return fault


def _two(of: Try) -> Iterator[str]:
    first = of.child()
    time.sleep(of.chance.choice([0.0, of.moment()]))
    second = of.child()
    ends = [first.wait(), second.wait()]
    for ended in ends:
        yield from of.after_failure(ended, 2)
    if all(ended.code for ended in ends):
        yield f"neither succeeds: {[ended.err[-300:] for ended in ends]}"
    elif other := of.different():
        yield f"after both: {other}"
    yield from of.again()


FAULTS: dict[str, Callable[[Try], Iterator[str]]] = {
    "killed": _stopped(signal.SIGKILL),
    "SIGTERM": _stopped(signal.SIGTERM, 143, -signal.SIGTERM),  # the one before the command has begun
    "SIGINT": _stopped(signal.SIGINT, 130),
    "a full disk": _full,
    "a limit on files": _limited,
    "a read-only place": _read_only,
    "read-only inputs": _read_only_inputs,
    "nobody reads": _output_closed("gone", 0),
    "output closed": _output_closed("closed", 0),
    "both closed": _output_closed("both closed", 0),
    "output is full": _output_closed("full", 2),
    "two at once": _two,
}
# Of the commands that take many seconds these are tried, once; of the others everything, those of ONCE once.
DEAR_KINDS = ("killed", "SIGTERM", "SIGINT", "a full disk", "nobody reads", "two at once")
ONCE = ("a read-only place", "read-only inputs", "nobody reads", "output closed", "both closed", "output is full")
MOUNTED = ("a full disk", "a read-only place", "read-only inputs")


def may_mount() -> bool:
    """Whether file systems can be mounted here."""
    with tempfile.TemporaryDirectory() as place:
        words = ["mount", "-t", "tmpfs", "tmpfs", place]
        if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode != 0:
            return False
        subprocess.run(["umount", place], check=True)
        return True


def try_fault(of: Try, fault: str) -> list[str]:
    """Try one fault, starting from the inputs, or from a finished output; what is wrong."""
    shutil.rmtree(of.scratch, ignore_errors=True)
    shutil.copytree(of.inputs, of.scratch)
    if of.overwrite:
        ended = Child(of.scratch, words_of(of.name)).wait()
        assert ended.code == 0, ended.err
    wrong = list(FAULTS[fault](of))
    return wrong + [f"left behind: {left}" for left in leftovers(of.scratch)]


def _in_turn(faults: list[tuple[str, str, bool]]) -> list[tuple[str, str, bool]]:
    """The same with the kinds in turn."""
    seen: Counter[str] = Counter()
    ranked = []
    for fault in faults:
        ranked.append((seen[fault[1]], fault))
        seen[fault[1]] += 1
    return [fault for _, fault in sorted(ranked, key=lambda one: one[0])]


def main(faults: int, commands: list[str], kinds: list[str], *, seed: int = 0, seconds: float = math.inf) -> int:
    """Try so many faults, of all kinds in turn, until the time is over; returns the number that ended wrong."""
    started = time.monotonic()
    chance = random.Random(seed)
    tried: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    mounting = may_mount()
    kinds = [kind for kind in kinds if mounting or kind not in MOUNTED]
    with tempfile.TemporaryDirectory(prefix="loki-faults-") as temporary:
        folder = Path(temporary).resolve()
        make_inputs(folder / "inputs")
        expected = {name: undisturbed(folder / "inputs", folder / "scratch", name) for name in commands}
        every = [(name, kind, over) for kind in kinds for name in commands for over in (False, True)]
        every = [one for one in every if one[0] not in DEAR or (one[1] in DEAR_KINDS and not one[2])]
        while every and tried.total() < faults:
            for name, kind, overwrite in _in_turn(chance.sample(every, len(every)))[: faults - tried.total()]:
                if time.monotonic() - started > seconds:
                    every = []
                    break
                of = Try(folder / "inputs", folder / "scratch", name, overwrite, expected[name], chance)
                found = try_fault(of, kind)
                tried[kind] += 1
                wrong[kind] += bool(found)
                for problem in found:
                    print(f"    {kind}, {' '.join(words_of(name, overwrite=overwrite))}: {problem}", flush=True)
            every = [one for one in every if one[0] not in DEAR and one[1] not in ONCE]
    for kind in kinds:
        print(f"{kind:<20} {tried[kind]:>5} tried {wrong[kind]:>5} wrong")
    if not mounting:
        print(f"not possible here (no right to mount): {', '.join(MOUNTED)}")
    print(f"{tried.total()} faults tried, {wrong.total()} wrong")
    return wrong.total()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Disturb commands that write, and print what ends wrong.")
    parser.add_argument("--faults", type=int, default=500, help="how many in all (default: 500)")
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--kinds", nargs="*", default=list(FAULTS), choices=list(FAULTS), metavar="KIND")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no more are tried")
    asked = parser.parse_args()
    sys.exit(bool(main(asked.faults, asked.commands, asked.kinds, seed=asked.seed, seconds=asked.seconds)))
