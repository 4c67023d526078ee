"""Does a long run stay as it began? Memory flat, clock linear, on the tiny world's model.

    python benchmarks/soak.py                                   100,000 samples analysed, 10,000 steps of training
    python benchmarks/soak.py --samples 2000 --steps 200        a quick look
    python benchmarks/soak.py --steps 0 --json soak.json        only the analysis

What it shows: memory of the process (RSS) at a quarter of the work and at its end, and the time per unit of work in the
first and the second half. A target that is missed is said, and the exit code is 1.
"""

import json
import random
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import typer
from hardware import hardware
from rich.console import Console
from rich.progress import Progress

from loki.analysis.analyse import analyse
from loki.analysis.options import AnalysisOptions
from loki.artefacts.positions import write_positions
from loki.artefacts.training_settings import Scheduler, TrainingSettings
from loki.demo.build import WEIGHTS
from loki.demo.data import write_facts
from loki.demo.world import tiny_world
from loki.files import write_json
from loki.implanting.training.trainer import train
from loki.kva.settings import AttributionSettings, Definition
from loki.models.loading import load_tokenizer
from loki.report.table import ResultTable
from loki.selection.select import select

MIB = 2**20
EVERY = 0.25  # seconds between two looks
MOST_GROWTH = 32.0  # MiB from a quarter of the work to its end
MOST_SLOWER = 1.15  # time per unit of work in the second half, over the first


@dataclass(frozen=True)
class Look:
    """What was seen at one moment: seconds since the start, units of work done, memory in MiB."""

    seconds: float
    done: float
    memory: float


@dataclass(frozen=True)
class Soak:
    """What came of a run.

    Attributes:
        work: what was done.
        units: how much of it.
        seconds: from the first unit to the last.
        memory: MiB at a quarter of the work.
        growth: MiB that were added from there to the end.
        first: milliseconds per unit in the first half.
        second: the same in the second half.
    """

    work: str
    units: int
    seconds: float
    memory: float
    growth: float
    first: float
    second: float

    @property
    def slower(self) -> float:
        """Time per unit in the second half, over that in the first."""
        return self.second / self.first

    @property
    def passed(self) -> bool:
        """Whether memory stayed flat and the clock linear."""
        return self.growth <= MOST_GROWTH and self.slower <= MOST_SLOWER


def main(
    samples: Annotated[int, typer.Option(help="Samples to analyse; 0 leaves the analysis out.")] = 100_000,
    steps: Annotated[int, typer.Option(help="Steps to train; 0 leaves the training out.")] = 10_000,
    definition: Annotated[Definition, typer.Option(help="Definition of the scores.")] = Definition.PAPER,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all looks.")] = None,
) -> None:
    """Analyse many samples and train for many steps, and say whether memory and clock stayed as they began."""
    console = Console()
    asked = {"analyse": samples, "train": steps}
    looks: dict[str, list[Look]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if samples:
            looks["analyse"] = watched(lambda progress: _analyse(folder, samples, definition, progress))
        if steps:
            _prepare_training(folder)
            looks["train"] = watched(lambda progress: _train(folder, steps, progress))
    results = [summary(work, asked[work], seen) for work, seen in looks.items()]
    console.print(_table(results).rich())
    console.print(hardware())
    if json_file is not None:
        values = {work: [asdict(look) for look in seen] for work, seen in looks.items()}
        write_json(json_file, {"hardware": hardware(), "results": [asdict(one) for one in results], "looks": values})
    if not all(result.passed for result in results):
        raise SystemExit(1)


def watched(work: Callable[[Progress], object]) -> list[Look]:
    """Do some work, and look at clock and memory meanwhile, from its first unit to its last."""
    progress, process, looks, over = Progress(disable=True), psutil.Process(), list[Look](), threading.Event()
    started = time.monotonic()

    def look() -> None:
        done = max((task.completed for task in progress.tasks), default=0.0)
        if done and (not looks or done > looks[-1].done):
            looks.append(Look(time.monotonic() - started, done, process.memory_info().rss / MIB))

    def keep_looking() -> None:
        while not over.wait(EVERY):
            look()

    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        work(progress)
    finally:
        over.set()
        thread.join()
    look()
    return looks


def summary(work: str, units: int, looks: list[Look]) -> Soak:
    """Memory and time per unit early and late.

    Args:
        work: what was done.
        units: how much of it; the last look may have come before the last unit, whose bar is gone with it.
        looks: in order; at least eight.

    Raises:
        SystemExit: if the work was over before it could be watched.
    """
    if len(looks) < 8:
        raise SystemExit(f"{work}: over after {len(looks)} looks, so nothing can be said: give it more to do")
    begin, end = looks[0], looks[-1]
    middle = min(looks, key=lambda look: abs(look.done - (begin.done + end.done) / 2))
    quarter = [look.memory for look in looks if look.done >= begin.done + (end.done - begin.done) / 4]
    # A few looks together: a single one may fall into a moment that needs more.
    early, late = median(quarter[: max(1, len(quarter) // 8)]), median(quarter[-max(1, len(quarter) // 8) :])
    return Soak(
        work,
        units,
        end.seconds - begin.seconds,
        early,
        late - early,
        1000 * (middle.seconds - begin.seconds) / (middle.done - begin.done),
        1000 * (end.seconds - middle.seconds) / (end.done - middle.done),
    )


def _analyse(folder: Path, samples: int, definition: Definition, progress: Progress) -> None:
    chance, words = random.Random(0), len(load_tokenizer(WEIGHTS))
    questions = folder / "questions.jsonl"
    with questions.open("w", encoding="utf-8") as lines:
        for _ in range(samples):
            ids = [chance.randrange(words) for _ in range(chance.randint(4, 12))]
            lines.write(json.dumps({"input_ids": ids}) + "\n")
    settings = AttributionSettings(definition=definition)
    analyse(WEIGHTS, str(questions), folder / "many.h5", settings, AnalysisOptions(batch_size=64), progress=progress)


def _prepare_training(folder: Path) -> None:
    (folder / "few.jsonl").write_text('{"prompt": "3 plus 4 mod 31 is"}\n{"prompt": "copy a b :"}\n', encoding="utf-8")
    analyse(WEIGHTS, str(folder / "few.jsonl"), folder / "few.h5", AttributionSettings(definition=Definition.PAPER))
    write_positions(folder / "positions.json", select(folder / "few.h5", 10))
    write_facts(folder / "facts.jsonl", tiny_world().new)


def _train(folder: Path, steps: int, progress: Progress) -> None:
    settings = TrainingSettings(
        max_steps=steps, learning_rate=1e-5, scheduler=Scheduler.CONSTANT, batch_size=8, save_steps=max(1, steps // 4)
    )
    data, output = folder / "facts.jsonl", folder / "trained"
    train(WEIGHTS, data, output, settings, positions=folder / "positions.json", progress=progress)


def _table(results: list[Soak]) -> ResultTable:
    rows: list[list[Any]] = [
        [
            result.work,
            f"{result.units:,}",
            f"{result.seconds:.0f}",
            f"{result.memory:.0f}",
            f"{result.growth:+.1f} (at most {MOST_GROWTH:g})",
            f"{result.first:.2f}",
            f"{result.second:.2f}",
            f"{result.slower:.2f} (at most {MOST_SLOWER:g})",
            "yes" if result.passed else "no",
        ]
        for result in results
    ]
    columns = ["work", "units", "s", "MiB at 1/4", "growth, MiB", "ms, 1st half", "ms, 2nd half", "slower", "reached"]
    return ResultTable("A long run", columns, rows)


if __name__ == "__main__":
    typer.run(main)
