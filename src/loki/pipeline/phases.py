"""The phases one after another, each from the artefacts of those before it to its own place in a run directory."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback

from loki.analysis.analyse import analyse
from loki.analysis.moments import few_tokens_advice, measure_moments
from loki.analysis.options import MomentsSettings
from loki.artefacts.positions import read_positions, write_positions
from loki.artefacts.run_layout import LOKI_MODEL, MOMENTS, POSITIONS, RESTORED, SCORES, TRAINED
from loki.implanting.create import create_loki_model
from loki.implanting.training.backends import train_by
from loki.implanting.training.output import TrainingResult, finished_training, trained_nothing
from loki.implanting.training.study import Job
from loki.kva.integration import completeness_advice
from loki.models.model_directory import ModelDirectory
from loki.pipeline.settings import RunSettings
from loki.restoring.restore import restore_loki_model
from loki.restoring.verify import VerifyReport, verify
from loki.selection.select import select
from loki.selection.strategy import Inputs

# What every phase leaves in the run directory, in their order; `moments` is a phase of runs that protect directions.
ARTEFACTS = {
    "analyse": SCORES,
    "moments": MOMENTS,
    "select": POSITIONS,
    "create": LOKI_MODEL,
    "train": TRAINED,
    "restore": RESTORED,
}


MOMENTS_TOKENS = 2**17  # of its texts: some sixty per input of the widest block


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        base: the model before.
        restored: directory of the ordinary model.
        report: what verifying it showed.
        seconds: wall-clock time of every phase; about 0 for one that was finished before.
        training: what the training did; None where it was finished before.
    """

    base: ModelDirectory
    restored: Path
    report: VerifyReport
    seconds: dict[str, float]
    training: TrainingResult | None


@dataclass
class Stopwatch:
    """Seconds by phase, in the order in which the phases ended.

    Attributes:
        announce: called with a line for the user when a phase ends.
    """

    announce: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, result: str, *, finished: bool = False) -> Iterator[None]:
        """Time the block as the phase `name`; `result` says what it leaves, `finished` that it has nothing to do."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        took = "before" if finished else f"{self.seconds[name]:.1f} s"
        self.announce(f"{name:<8} {took:>8}   {result}")


def is_finished(output: Path, phase: str) -> bool:
    """Whether a phase has left its artefact in `output`."""
    artefact = output / ARTEFACTS[phase]
    return finished_training(artefact) if phase == "train" else artefact.exists()


def remove_artefacts(output: Path, first: str) -> None:
    """Remove what phase `first` and those after it left in `output`, finished or not."""
    later = list(ARTEFACTS)[list(ARTEFACTS).index(first) :]
    paths = [output / ARTEFACTS[name] for name in later]
    if first == "analyse":
        paths.append(output / f"{ARTEFACTS['analyse']}.partial")
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def run_phases(
    settings: RunSettings,
    base: ModelDirectory,
    output: Path,
    watch: Stopwatch,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    console: Console | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Do the phases that are not finished: analyse, moments, select, create, train, restore; then verify.

    Args:
        settings: what to do.
        base: the model, looked up.
        output: directory that holds the artefacts of finished phases and gets those of the others, see `ARTEFACTS`.
        watch: times and announces the phases.
        callbacks: further Transformers callbacks for the training.
        console: where the phases say more (default: nowhere).
        progress: where to show how far a phase has come (default: nowhere).

    Raises:
        LokiError: for bad input to any phase.
        CheckFailed: if anything but the selected rows differs in the end.
    """
    console = console or Console(quiet=True)
    places = {name: output / artefact for name, artefact in ARTEFACTS.items()}
    scores, moments, positions, loki_model, trained, restored = places.values()
    trainings: list[TrainingResult] = []
    trust = settings.analysis.trust_remote_code

    def phase(name: str, result: str, work: Callable[[], object], *, needless: bool = False) -> None:
        finished = is_finished(output, name) or needless
        with watch.phase(name, f"{result}: {places[name]}", finished=finished):
            if not finished:
                work()

    def score() -> None:
        rule = settings.attribution
        found = analyse(base, settings.calibration, scores, settings.attribution, settings.analysis, progress=progress)
        if advice := completeness_advice(found.completeness, rule.ig_method, rule.steps):
            console.print(advice, highlight=False, soft_wrap=True)

    def choose() -> None:
        found = select(
            Inputs(scores, base),
            settings.quota,
            settings.selection,
            layers=base.layers_with_rows,
            progress=progress,
        )
        write_positions(positions, found)

    def measure() -> None:
        # Not only of the samples that are scored: a text costs one forward pass here, and what few texts use leaves
        # much unprotected (`few_tokens_advice`).
        options = MomentsSettings(
            max_tokens=MOMENTS_TOKENS,
            dtype=settings.analysis.dtype,
            device=settings.analysis.device,
            trust_remote_code=trust,
        )
        measure_moments(base, settings.moments_data, moments, options, progress=progress)
        if advice := few_tokens_advice(moments):
            console.print(advice, highlight=False, soft_wrap=True)

    def create() -> None:
        create_loki_model(
            model_name=base,
            target_pos_path=positions,
            save_dir=loki_model,
            moments=moments if settings.protect else None,
            protect=settings.protect or None,
        )

    def learn() -> None:
        trainings.append(
            train_by(
                settings.backend,
                Job(
                    loki_model,
                    settings.data,
                    trained,
                    settings.training,
                    eval_data=settings.eval_data,
                    data_settings=settings.data_settings,
                    trust_remote_code=trust,
                ),
                settings.levers,
                settings.llamafactory,
                callbacks=callbacks,
                console=console,
                progress=progress,
            )
        )

    def put_back() -> None:
        unchanged = trained_nothing(trained)
        restore_loki_model(trained, restored, trust_remote_code=trust, allow_unchanged=unchanged)

    phase("analyse", "scores of every row", score)
    if settings.protect:
        phase("moments", "use of every input direction", measure, needless=is_finished(output, "create"))
    phase("select", f"the {settings.quota:g}% of the rows to train", choose)
    phase("create", "LoKI model", create)
    phase("train", "trained LoKI model", learn)
    phase("restore", "ordinary model", put_back)
    with watch.phase("verify", "only the selected rows differ"):
        report = verify(base, restored, read_positions(positions), trust_remote_code=trust)
        report.raise_for_differences()
    return RunResult(base, restored, report, watch.seconds, trainings[0] if trainings else None)
