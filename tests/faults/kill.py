"""Commands killed (-9) as they change a file, then run again: the outcome must be that of an undisturbed run.

`python -m tests.faults.kill [FAULTS]` tries so many points (default: all) of every command and prints how many.
"""

import hashlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loki.artefacts.positions import write_positions
from loki.cli.main import COMMANDS as cli_commands  # noqa: N811
from loki.implanting.create import create_loki_model
from loki.implanting.peft.zero import save_zero_adapter
from tests.artefacts.scores_files import write_scores
from tests.hostile.sandbox import loki
from tests.tiny_models import save_tiny_model

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "tempfile.mkstemp", "tempfile.mkdtemp"}
OUTPUT = "output"
LIBRARY = ("loki.restoring.restore", "loki.restoring.suppress", "loki.analysis.moments", "loki.analysis.merge_scores")
COMMANDS: dict[str, tuple[str, ...]] = {
    "select": ("select", "scores.h5", "--quota", "10"),
    "create": ("create", "base", "--positions", "positions.json"),
    "adapter": ("adapter", "base", "--positions", "positions.json"),
    "suppress": ("suppress", "base", "--positions", "positions.json"),
    "restore": ("restore", "loki", "--allow-unchanged"),
    "merge": ("merge", "scores.h5", "other.h5"),
    "merge-adapters": ("merge-adapters", "one", "two"),
    "export-lora": ("export-lora", "one", "--full-rows"),
    "moments": ("moments", "base", "--data", "text.txt"),
}


def make_inputs(folder: Path) -> None:
    """What the commands read; and all that they import is imported, for the processes that are forked."""
    for module in (*(f"loki.cli.{command}" for command in cli_commands), *LIBRARY):
        importlib.import_module(module)
    save_tiny_model(folder / "base")
    for name, first in (("scores.h5", 0), ("other.h5", 10)):
        write_scores(folder / name, np.ones((2, 3, 32), dtype=np.float32), first=first)
    write_positions(folder / "positions.json", [[1], [2], [3]])
    create_loki_model(model_name=folder / "base", target_pos_path=folder / "positions.json", save_dir=folder / "loki")
    for name, row in (("one", 4), ("two", 5)):
        save_zero_adapter(folder / "base", [[row], [row], [row]], folder / name)
    (folder / "text.txt").write_text("Nothing in particular.")


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder` with the hash of its bytes; folders by their names."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


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
        if (event in CHANGES or opened) and str(arguments[0]).startswith((str(folder), OUTPUT, ".")):
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
    words = (*COMMANDS[name], "--output", OUTPUT, *(("--overwrite",) if overwrite else ()))
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary, "scratch").resolve()
        shutil.copytree(inputs, scratch)
        code, count = run(scratch, words)
        assert (code, count > 0) == (0, True), f"loki {' '.join(words)} exits with {code}, {count} changes"
        expected = contents(scratch)
        points = list(range(1, count + 1))
        if faults is not None:
            points = sorted(chance.sample(points, min(faults, count)))
        for point in points:
            shutil.rmtree(scratch)
            shutil.copytree(inputs, scratch)
            if overwrite:
                run(scratch, words)
            assert run(scratch, words, kill_at=point)[0] == -signal.SIGKILL, (words, point)
            for given in contents(inputs).items():
                assert given in contents(scratch).items(), (words, point, given)
            # Where it was killed after the last rename, the output is there, and the same command says so.
            again = words if overwrite or not (scratch / OUTPUT).exists() else (*words, "--overwrite")
            assert run(scratch, again)[0] == 0, (words, point)
            assert contents(scratch) == expected, (words, point, contents(scratch).keys() ^ expected.keys())
        return len(points)


def main(faults: int | None, seed: int = 0) -> int:
    """Try every command; the number of faults."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        make_inputs(Path(temporary))
        return sum(
            try_command(Path(temporary), name, faults, chance, overwrite=overwrite)
            for name in COMMANDS
            for overwrite in (False, True)
        )


if __name__ == "__main__":
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else None), "faults tried")
