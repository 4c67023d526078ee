"""All phases in one go, from a base model to a restored and verified one; a finished phase is not run again."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from loki.analysis.analyse import analyse
from loki.analysis.moments import MomentsSettings, measure_moments
from loki.analysis.options import AnalysisOptions
from loki.artefacts.positions import read_positions, write_positions
from loki.artefacts.run_records import changes, read_record, remove_recorded, write_record
from loki.calibration.sources import load_calibration
from loki.data.preparing import prepare_training_data
from loki.data.sources import Data, local_paths
from loki.errors import LokiError
from loki.files import protect_inputs, refuse_existing
from loki.implanting.create import create_loki_model
from loki.implanting.directions import check_protect
from loki.implanting.training.output import finished_training
from loki.implanting.training.settings import TrainingSettings
from loki.implanting.training.trainer import train
from loki.kva.integration import completeness_advice
from loki.kva.settings import AttributionSettings
from loki.models.architectures import max_positions
from loki.models.model_directory import ModelDirectory
from loki.restoring.restore import restore_loki_model
from loki.restoring.verify import VerifyReport, verify
from loki.selection.select import select
from loki.selection.strategies import SelectionSettings, find_strategy
from loki.selection.strategy import Input, Inputs

RECORD = "run.json"


@dataclass(frozen=True)
class RunSettings:
    """What a run does.

    Attributes:
        model: base model, a local directory or hub id.
        data: training data, see `load_training_data`.
        calibration: calibration data, see `loki.calibration.sources.load_calibration`.
        quota: percentage of the rows to train.
        selection: how they are selected.
        samples_per_subject: draw so many calibration samples of every subject; None takes all.
        attribution: how rows are scored.
        training: how they are trained.
        protect: share of the input directions that training leaves alone, see `loki.implanting.directions`; their use
            is measured on the calibration data. None trains along all of them.
    """

    model: str
    data: Data
    calibration: str
    quota: float
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    samples_per_subject: int | None = None
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    protect: float | None = None

    def check(self, base: ModelDirectory) -> dict[str, Any]:
        """Refuse now what a later phase would refuse after hours of analysis.

        Args:
            base: the model, looked up.

        Returns:
            The settings as JSON values, with hashes of the data in place of their paths.

        Raises:
            LokiError: if the model or the data are missing, damaged or do not fit each other, the model cannot be
                implanted, or quota or strategy make no sense.
        """
        base.check()
        if self.protect is not None:
            check_protect(self.protect)
        text, tokenizer = base.text_config, base.tokenizer
        strategy = find_strategy(self.selection.strategy)
        strategy.check_inputs(frozenset({Input.SCORES, Input.MODEL}))
        strategy.rows(self.quota, len(base.projection_names), text.hidden_size)
        examples = prepare_training_data(self.data, base, self.training.max_length)
        calibration = load_calibration(
            self.calibration,
            tokenizer,
            max_positions=max_positions(base.config),
            vocab_size=text.vocab_size,
            samples_per_subject=self.samples_per_subject,
        )
        return {**asdict(self), "data": examples.digest, "calibration": calibration.digest}


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        restored: directory of the ordinary model.
        report: what verifying it showed.
        seconds: wall-clock time of every phase; about 0 for one that was finished before.
    """

    restored: Path
    report: VerifyReport
    seconds: dict[str, float]


def run(
    settings: RunSettings,
    output: Path,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Analyse, select, create, train, restore and verify, each into its place in `output`.

    With `protect`, the second moments of the inputs are measured before the LoKI model is created.

    The same call again continues where an interrupted one stopped, within a phase too.

    Args:
        settings: what to do.
        output: the run directory: `scores.h5`, `positions.json`, `moments.safetensors`, `loki_model`, `trained`,
            `restored`, `run.json`.
        overwrite: remove what stands at `output` and start anew.
        console: where to say what is done (default: nowhere).
        progress: where to show how far a phase has come (default: nowhere).

    Raises:
        LokiError: for bad input to any phase, or if `output` holds a run with other settings.
        CheckFailed: if anything but the selected rows differs in the end.
    """
    console = console or Console(quiet=True)
    base = ModelDirectory(settings.model)
    _begin(settings, output, settings.check(base), overwrite=overwrite)
    scores, positions = output / "scores.h5", output / "positions.json"
    loki_model, trained, restored = output / "loki_model", output / "trained", output / "restored"
    seconds: dict[str, float] = {}

    def phase(name: str, finished: bool, work: Callable[[], object]) -> None:
        started = time.monotonic()
        if not finished:
            work()
        seconds[name] = time.monotonic() - started
        state = "finished before" if finished else f"{seconds[name]:.1f} s"
        console.print(f"{name:<8} {state}", highlight=False)

    def score() -> None:
        analysis = analyse(
            base,
            settings.calibration,
            scores,
            settings.attribution,
            AnalysisOptions(samples_per_subject=settings.samples_per_subject),
            progress=progress,
        )
        if advice := completeness_advice(analysis.completeness, settings.attribution.steps):
            console.print(advice, highlight=False, soft_wrap=True)

    phase("analyse", scores.is_file(), score)
    phase(
        "select",
        positions.is_file(),
        lambda: write_positions(
            positions, select(Inputs(scores, base), settings.quota, settings.selection, progress=progress)
        ),
    )
    moments = None if settings.protect is None else output / "moments.safetensors"
    if moments is not None:
        measuring = MomentsSettings(samples_per_subject=settings.samples_per_subject)
        measured = moments
        phase(
            "moments",
            moments.is_file() or loki_model.is_dir(),
            lambda: measure_moments(base, settings.calibration, measured, measuring, progress=progress),
        )
    phase(
        "create",
        loki_model.is_dir(),
        lambda: create_loki_model(
            model_name=base,
            target_pos_path=positions,
            save_dir=loki_model,
            moments=moments,
            protect=settings.protect,
        ),
    )
    phase(
        "train",
        finished_training(trained),
        lambda: train(loki_model, settings.data, trained, settings.training, console=console),
    )
    phase("restore", restored.is_dir(), lambda: restore_loki_model(trained, restored))
    started = time.monotonic()
    report = verify(base, restored, read_positions(positions))
    report.raise_for_differences()
    seconds["verify"] = time.monotonic() - started
    return RunResult(restored, report, seconds)


def _begin(settings: RunSettings, output: Path, record: dict[str, Any], *, overwrite: bool) -> None:
    protect_inputs(output, settings.model, *local_paths(settings.data), settings.calibration)
    if overwrite:
        remove_recorded(output, RECORD, settings.model, *local_paths(settings.data), settings.calibration)
    found = read_record(output, RECORD)
    if found is None:
        refuse_existing(output, overwrite=False)
        write_record(output, RECORD, record)
    elif different := changes(found, record):
        raise LokiError(
            f"{output} holds a run with other settings ({different}): "
            "choose another --output, or pass --overwrite to start anew"
        )
