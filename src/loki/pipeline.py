"""All phases in one go, from a base model to a restored and verified one; a finished phase is not run again."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback

from loki.analysis.analyse import analyse
from loki.analysis.moments import MomentsSettings, measure_moments
from loki.analysis.options import AnalysisOptions
from loki.artefacts.positions import read_positions, write_positions
from loki.artefacts.run_records import changes, read_record, remove_recorded, write_record
from loki.calibration.sources import load_calibration
from loki.data.preparing import prepare_training_data
from loki.data.settings import DataSettings
from loki.data.sources import Data, local_paths
from loki.errors import LokiError, one_line
from loki.files import atomic_file, protect_inputs, refuse_existing
from loki.implanting.create import create_loki_model
from loki.implanting.directions import check_protect
from loki.implanting.training.output import TrainingResult, finished_training
from loki.implanting.training.settings import TrainingSettings, check_held_out
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

RECORD, CONFIG = "run.json", "run.yaml"
DEFAULT_QUOTA = 10.0

# What every phase leaves in the run directory, in their order.
_ARTEFACTS = {
    "analyse": "scores.h5",
    "select": "positions.json",
    "create": "loki_model",
    "train": "trained",
    "restore": "restored",
}
_MOMENTS = "moments.safetensors"
# The first phase whose result depends on a setting; the rest of them concern `analyse`.
_FIRST_PHASE = {
    "protect": "create",
    "quota": "select",
    "selection": "select",
    "data": "train",
    "eval_data": "train",
    "data_settings": "train",
    "training": "train",
}


@dataclass(frozen=True)
class RunSettings:
    """What a run does: the options of all its phases.

    Attributes:
        model: base model, a local directory or hub id.
        data: training data, see `load_training_data`.
        calibration: calibration data, see `loki.calibration.sources.load_calibration`.
        quota: percentage of the rows to train.
        eval_data: held-out data in the form of the training data, if there is any.
        data_settings: which part of the data, and how conversations are rendered.
        selection: how rows are selected.
        attribution: how they are scored.
        analysis: how the scoring is run.
        training: how they are trained.
        protect: share of the input directions that training leaves alone, see `loki.implanting.directions`; their use
            is measured on the calibration data. None trains along all of them.
    """

    model: str
    data: Data
    calibration: str
    quota: float = DEFAULT_QUOTA
    eval_data: Data | None = None
    data_settings: DataSettings = field(default_factory=DataSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    analysis: AnalysisOptions = field(default_factory=AnalysisOptions)
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
        check_held_out(self.training, self.eval_data)
        length, part = self.training.max_length, self.data_settings
        examples = prepare_training_data(self.data, base, length, part)
        held_out = prepare_training_data(self.eval_data, base, length, part, held_out=True) if self.eval_data else None
        calibration = load_calibration(
            self.calibration,
            tokenizer,
            max_positions=max_positions(base.config),
            vocab_size=text.vocab_size,
            subjects=self.analysis.subjects,
            samples_per_subject=self.analysis.samples_per_subject,
            seed=self.analysis.seed,
        )
        digests = {"data": examples.digest, "eval_data": held_out.digest if held_out else None}
        return {**asdict(self), **digests, "calibration": calibration.digest}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values, data by their paths: what `from_dict` reads, and a run is repeated from."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunSettings":
        """The settings in a dictionary such as `to_dict` makes; what is left out keeps its default.

        Raises:
            LokiError: for a key that is not known, one that is missing, or a value that makes no sense.
        """
        groups: dict[str, type[Any]] = {
            "data_settings": DataSettings,
            "selection": SelectionSettings,
            "attribution": AttributionSettings,
            "analysis": AnalysisOptions,
            "training": TrainingSettings,
        }
        _check_keys(values, cls, "")
        if missing := [name for name in ("model", "data", "calibration") if not values.get(name)]:
            raise LokiError(f"nothing says which {missing[0]} to use: give --{missing[0]}, or write it into --config")
        given = dict(values)
        for name, kind in groups.items():
            part = given.get(name) or {}
            _check_keys(part, kind, f"{name}.")
            try:
                given[name] = kind(**part)
            except TypeError as error:  # a text where a number is expected
                raise LokiError(f"the settings of {name} are not of the right type ({one_line(error)})") from error
        return cls(**given)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file such as a run leaves in its directory.

    Raises:
        LokiError: if it is missing, or no YAML mapping.
    """
    if not path.is_file():
        raise LokiError(f"--config {path} does not exist: check the path")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LokiError(f"--config {path} is not YAML ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise LokiError(f"--config {path} holds no settings: write `name: value` lines, as in a run's {CONFIG}")
    return values


def _check_keys(values: Any, settings: type[Any], prefix: str) -> None:
    if not isinstance(values, Mapping):
        raise LokiError(f"{prefix.rstrip('.')} is {values!r}: write its settings as `name: value` lines")
    known = [each.name for each in fields(settings)]
    for key in values:
        if key not in known:
            raise LokiError(f"{prefix}{key} is no setting: use {', '.join(known)}")


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


def run(
    settings: RunSettings,
    output: Path,
    *,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    console: Console | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Analyse, select, create, train, restore and verify, each into its place in `output`.

    With `protect`, the second moments of the inputs are measured before the LoKI model is created.

    The same call again continues where an interrupted one stopped, within a phase too. With other settings, the phases
    that do not depend on them are kept.

    Args:
        settings: what to do.
        output: the run directory: `scores.h5`, `positions.json`, `moments.safetensors`,
            `loki_model`, `trained`, `restored`, `run.json`, and
            `run.yaml`, which the run can be repeated from.
        overwrite: do finished phases again whose settings have changed; with the same settings, start anew.
        callbacks: further Transformers callbacks for the training.
        console: where to say what is done (default: nowhere).
        progress: where to show how far a phase has come (default: nowhere).

    Raises:
        LokiError: for bad input to any phase, or if `output` holds a finished phase with other settings.
        CheckFailed: if anything but the selected rows differs in the end.
    """
    console = console or Console(quiet=True)
    base = ModelDirectory(settings.model)
    _begin(settings, output, settings.check(base), overwrite=overwrite, console=console)
    scores, positions, loki_model, trained, restored = (output / name for name in _ARTEFACTS.values())
    seconds: dict[str, float] = {}
    trainings: list[TrainingResult] = []

    def phase(name: str, finished: bool, work: Callable[[], object]) -> None:
        started = time.monotonic()
        if not finished:
            work()
        seconds[name] = time.monotonic() - started
        state = "finished before" if finished else f"{seconds[name]:.1f} s"
        console.print(f"{name:<8} {state}", highlight=False)

    def score() -> None:
        found = analyse(base, settings.calibration, scores, settings.attribution, settings.analysis, progress=progress)
        if advice := completeness_advice(found.completeness, settings.attribution.steps):
            console.print(advice, highlight=False, soft_wrap=True)

    def learn() -> None:
        trainings.append(
            train(
                loki_model,
                settings.data,
                trained,
                settings.training,
                eval_data=settings.eval_data,
                data_settings=settings.data_settings,
                callbacks=callbacks,
                console=console,
                progress=progress,
            )
        )

    phase("analyse", scores.is_file(), score)
    phase(
        "select",
        positions.is_file(),
        lambda: write_positions(
            positions, select(Inputs(scores, base), settings.quota, settings.selection, progress=progress)
        ),
    )
    moments = None if settings.protect is None else output / _MOMENTS
    if moments is not None:
        measuring = MomentsSettings(samples_per_subject=settings.analysis.samples_per_subject)
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
    phase("train", finished_training(trained), learn)
    phase("restore", restored.is_dir(), lambda: restore_loki_model(trained, restored))
    started = time.monotonic()
    report = verify(base, restored, read_positions(positions))
    report.raise_for_differences()
    seconds["verify"] = time.monotonic() - started
    return RunResult(base, restored, report, seconds, trainings[0] if trainings else None)


def _begin(settings: RunSettings, output: Path, record: dict[str, Any], *, overwrite: bool, console: Console) -> None:
    """Make the run directory ready: of what it holds, phases that depend on a changed setting go."""
    held_out = local_paths(settings.eval_data) if settings.eval_data else []
    inputs: list[str | Path] = [settings.model, *local_paths(settings.data), *held_out, settings.calibration]
    if settings.data_settings.chat_template:
        inputs.append(settings.data_settings.chat_template)
    protect_inputs(output, *inputs)
    found = read_record(output, RECORD)
    if found is None:
        if overwrite:
            remove_recorded(output, RECORD, *inputs)
        refuse_existing(output, overwrite=False)
    else:
        was, now = _flat(found), _flat(record)
        if different := changes(was, now):
            changed = [key for key in now if was.get(key) != now[key]]
            first = min((_FIRST_PHASE.get(key.partition(".")[0], "analyse") for key in changed), key=_order)
            _drop_phases(output, first, different, overwrite=overwrite, console=console)
        elif overwrite:
            remove_recorded(output, RECORD, *inputs)
    if read_record(output, RECORD) != json.loads(json.dumps(record, default=str)):
        write_record(output, RECORD, record)
    text, config = yaml.safe_dump(settings.to_dict(), sort_keys=False), output / CONFIG
    if not config.is_file() or config.read_text(encoding="utf-8") != text:
        with atomic_file(config, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _drop_phases(output: Path, first: str, different: str, *, overwrite: bool, console: Console) -> None:
    """Remove what phase `first` and those after it left; a finished one only with `overwrite`.

    Raises:
        LokiError: if one is finished and may not be removed.
    """
    later = [name for name in _ARTEFACTS if _order(name) >= _order(first)]
    kept = [name for name in _ARTEFACTS if name not in later and (output / _ARTEFACTS[name]).exists()]
    stays = f"; {', '.join(kept)} will be kept" if kept else ""
    finished = [
        name
        for name in later
        if (finished_training(output / "trained") if name == "train" else (output / _ARTEFACTS[name]).exists())
    ]
    if finished and not overwrite:
        raise LokiError(
            f"{output} holds a run with other settings ({different}): choose another --output, or pass --overwrite "
            f"to do {', '.join(finished)} again{stays}"
        )
    paths = [output / _ARTEFACTS[name] for name in later]
    if first == "analyse":
        paths += [output / f"{_ARTEFACTS['analyse']}.partial", output / _MOMENTS]
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    console.print(f"changed: {different}{stays.replace('will be', 'are')}", highlight=False, soft_wrap=True)


def _order(phase: str) -> int:
    return list(_ARTEFACTS).index(phase)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names such as `training.epochs`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
