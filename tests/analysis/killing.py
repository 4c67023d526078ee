"""Runs an analysis again and again, killing it at random moments, and compares what comes out with an undisturbed run.

A program of its own, so that every attempt is a fork of a process that has imported everything and run nothing:
`python -m tests.analysis.killing MODEL DATA FOLDER KILLS SECONDS SEED DEFINITION [QUOTA]`. Attempts are killed within
SECONDS of their start; when one finishes before that, its output is compared and the next starts afresh. With a quota
the samples are counted, without a log. Prints the number of kills and of finished runs.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import torch

from loki.analysis.analyse import analyse
from loki.analysis.count import count_selections
from loki.analysis.options import AnalysisOptions
from loki.analysis.work_folder import BatchResults, WorkFolder
from loki.kva.settings import AttributionSettings, Definition

Run = Callable[[Path], None]


def forked(run: Run, output: Path, log: Path) -> int:
    """Start an attempt in a process of its own; the batches that it stores are listed in `log`."""
    child = os.fork()
    if child:
        return child
    write_batch = WorkFolder.write_batch

    def write_and_note(self: WorkFolder, number: int, results: BatchResults) -> None:
        write_batch(self, number, results)
        with log.open("a") as stream:
            stream.write(f"{number}\n")

    WorkFolder.write_batch = write_and_note  # type: ignore[method-assign]
    torch.set_num_threads(1)
    code = 1
    try:
        run(output)
        code = 0
    finally:
        os._exit(code)


def finish(child: int) -> None:
    """Wait for an attempt that must succeed."""
    assert os.waitpid(child, 0)[1] == 0, "an attempt that was not killed failed"


def result(output: Path) -> bytes:
    """What must be the same: the dataset's bytes, or the positions file."""
    if output.is_dir():
        return b"".join(path.read_bytes() for path in sorted(output.iterdir()))
    with h5py.File(output) as file:
        data: bytes = file["dataset"][:].tobytes()
        return data


def check_and_clear(output: Path, log: Path, expected: bytes) -> None:
    """Compare a finished output with the undisturbed one, and make room for the next."""
    assert result(output) == expected, "the result differs from that of an undisturbed run"
    assert not output.with_name(f"{output.name}.partial").exists()
    stored = log.read_text().split()
    assert len(stored) == len(set(stored)), "a stored batch was computed again"
    log.unlink()
    for path in output.iterdir() if output.is_dir() else [output]:
        path.unlink()


def main(run: Run, folder: Path, kills: int, seconds: float, seed: int) -> None:
    """Kill `kills` attempts, and check everything that gets through."""
    chance = random.Random(seed)
    log, output = folder / "log", folder / "output"
    finish(forked(run, folder / "undisturbed", log))
    log.unlink()
    expected = result(folder / "undisturbed")
    killed = finished = 0
    while killed < kills:
        child = forked(run, output, log)
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            killed += 1
        else:
            check_and_clear(output, log, expected)
            finished += 1
    finish(forked(run, output, log))
    check_and_clear(output, log, expected)
    print(killed, finished + 1)


if __name__ == "__main__":
    model, data, folder_, kills_, seconds_, seed_, definition, *quota = sys.argv[1:]
    settings, options = AttributionSettings(Definition(definition)), AnalysisOptions(batch_size=2)

    def analyse_or_count(output: Path) -> None:
        """What is disturbed."""
        if quota:
            count_selections(model, data, output, [float(quota[0])], settings, options)
        else:
            analyse(model, data, output, settings, options)

    main(analyse_or_count, Path(folder_), int(kills_), float(seconds_), int(seed_))
