"""The options of all phases in one object, from Python, the command line or a YAML file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from loki.analysis.options import AnalysisOptions, MomentsSettings
from loki.artefacts.run_layout import CONFIG
from loki.artefacts.training_settings import (
    DEFAULT_PROTECT,
    DEFAULT_QUOTA,
    BackendName,
    TrainingSettings,
    check_held_out,
    check_reporter,
)
from loki.calibration.samples import CalibrationSet
from loki.calibration.sources import load_calibration
from loki.calibration.texts import Sources, digest_of_texts, load_token_ids
from loki.data.fitting import TrainingData
from loki.data.preparing import prepare_training_data, training_tokenizer
from loki.data.settings import DataSettings
from loki.data.sources import Data
from loki.errors import LokiError, one_line
from loki.implanting.create import check_implantable
from loki.implanting.directions import check_protect
from loki.implanting.llamafactory.train import LlamaFactorySettings
from loki.implanting.training.backends import check_backend
from loki.implanting.training.levers import Levers, digest_of_input
from loki.inputs import check_fields, reading
from loki.kva.settings import AttributionSettings
from loki.models.architectures import max_positions
from loki.models.experts import Experts
from loki.models.model_directory import ModelDirectory
from loki.selection.strategies import SelectionSettings, find_strategy
from loki.selection.strategy import Input

_CORRECT = "correct it in --config"


@dataclass(frozen=True)
class Checked:
    """A run's data, once it has been checked.

    Attributes:
        record: the settings as JSON values, with hashes of the data in place of their paths.
        examples: what is trained on.
        calibration: what is analysed.
    """

    record: dict[str, Any]
    examples: TrainingData
    calibration: CalibrationSet


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
        analysis: how the scoring is run; its `trust_remote_code` holds for all phases.
        training: how they are trained.
        backend: who trains them.
        levers: what keeps the damage of training low, beside `protect`.
        llamafactory: what only that back end has.
        protect: share of the input directions that training leaves alone, see `loki.implanting.directions`. 0 trains
            along all of them, as published.
        protect_data: texts that their use is measured on, each with an equal part of the tokens; None takes all the
            calibration data, however few of it is scored.
        experts: which rows are meant where the model has experts, see `loki.models.experts.Experts`.
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
    backend: BackendName = BackendName.TRL
    levers: Levers = field(default_factory=Levers)
    llamafactory: LlamaFactorySettings = field(default_factory=LlamaFactorySettings)
    protect: float = DEFAULT_PROTECT
    protect_data: Sequence[str] | None = None
    experts: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "protect", self.protect or 0.0)  # null in the file of an older run
        if self.backend not in list(BackendName):
            raise LokiError(f"--backend {self.backend} is not known: use {', '.join(BackendName)}")
        object.__setattr__(self, "backend", BackendName(self.backend))

    def check(self, base: ModelDirectory) -> Checked:
        """Refuse now what a later phase would refuse after hours of analysis.

        Args:
            base: the model, looked up.

        Returns:
            What was read, and the settings as JSON values.

        Raises:
            LokiError: if the model or the data are missing, damaged or do not fit each other, the model cannot be
                implanted, or quota or strategy make no sense.
        """
        base.check()
        check_implantable(base)
        if base.experts is Experts.ALL and self.protect:
            raise LokiError("--experts all protects no input directions: pass --protect 0")
        if self.protect:
            check_protect(self.protect)
        elif self.protect_data:
            raise LokiError("--protect-data says what to protect, and --protect 0 protects nothing: leave one out")
        text, tokenizer = base.text_config, base.tokenizer
        strategy = find_strategy(self.selection.strategy)
        strategy.check_inputs(frozenset({Input.SCORES, Input.MODEL}))
        strategy.rows(self.quota, len(base.layers_with_rows), text.hidden_size)
        check_held_out(self.training, self.eval_data)
        check_reporter(self.training)
        check_backend(self.backend, self.llamafactory, self.training, self.levers)
        self.levers.read_text(tokenizer, base.config)
        length, part = self.training.max_length, self.data_settings
        examples = prepare_training_data(self.data, base, length, part)
        if self.levers.replay:
            rendering = training_tokenizer(base, part.chat_template)
            self.levers.replay_for(base, rendering, examples, length, self.training.seed)
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
        digests = {"data": examples.digest, "eval_data": held_out.digest if held_out else None, "moments_data": None}
        part_scored = self.analysis.subjects or self.analysis.samples_per_subject is not None
        if self.protect and (self.protect_data or part_scored):
            texts = load_token_ids(
                self.moments_data, tokenizer, max_length=MomentsSettings.max_length, vocab_size=text.vocab_size
            )
            digests["moments_data"] = digest_of_texts(texts)
        levers = {str(path): digest_of_input(path) for path in self.levers.inputs if path.is_file()}
        found = {**asdict(self), **digests, "calibration": calibration.digest, "kept_and_replayed": levers}
        del found["llamafactory"]["python"]  # where it is installed changes nothing
        del found["protect_data"]  # its digest is there
        if self.experts is None:  # as in records of earlier releases
            del found["experts"]
        return Checked(found, examples, calibration)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values, data by their paths: what `from_dict` reads, and a run is repeated from."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return values

    @property
    def moments_data(self) -> Sources:
        """What the use of input directions is measured on."""
        return self.protect_data or self.calibration

    @property
    def base(self) -> ModelDirectory:
        """The model, looked up now.

        Raises:
            LokiError: if there is none.
        """
        return ModelDirectory(self.model, trust_remote_code=self.analysis.trust_remote_code, experts=self.experts)

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
            "levers": Levers,
            "llamafactory": LlamaFactorySettings,
        }
        _check_keys(values, cls, "")
        if missing := [name for name in ("model", "data", "calibration") if not values.get(name)]:
            raise LokiError(f"nothing says which {missing[0]} to use: give --{missing[0]}, or write it into --config")
        given = {**values, "protect": values.get("protect", cls.protect) or 0.0}  # null in the file of an older run
        levers = given.get("levers")
        if isinstance(levers, Mapping) and levers.get("max_damage") is not None and levers.get("keep") is None:
            given["levers"] = {**levers, "keep": given["calibration"], "keep_weight": 0.0}  # looked at, not trained on
        for name, kind in groups.items():
            part = given.get(name) or {}
            _check_keys(part, kind, f"{name}.")
            check_fields(kind, part, f"the settings of {name}", advice=_CORRECT)
            try:
                given[name] = kind(**part)
            except TypeError as error:  # a text where a number is expected
                raise LokiError(f"the settings of {name} are not of the right type ({one_line(error)})") from error
        check_fields(cls, given, "the settings", advice=_CORRECT)
        return cls(**given)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file such as a run leaves in its directory.

    Raises:
        LokiError: if it is missing, or no YAML mapping.
    """
    if not path.is_file():
        raise LokiError(f"--config {path} does not exist: check the path")
    with reading("settings", path, advice=_CORRECT):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
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
