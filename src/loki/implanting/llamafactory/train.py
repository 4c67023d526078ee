"""Training a LoKI model with LlamaFactory: `loki train --backend llamafactory`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from loki.artefacts.training_settings import TrainingSettings
from loki.data.settings import DataSettings
from loki.data.sources import Data
from loki.errors import LokiError
from loki.files import write_json
from loki.implanting.create import create_loki_model
from loki.implanting.llamafactory.configuration import DEEPSPEED_ZERO_2, configuration
from loki.implanting.llamafactory.dataset import NO_TEMPLATE, write_dataset, write_tokenised
from loki.implanting.llamafactory.interpreter import find_interpreter
from loki.implanting.llamafactory.launch import command, launch
from loki.implanting.llamafactory.run_directory import NAME, RunDirectory
from loki.implanting.splitting import loki_linears
from loki.implanting.training.job import Prepared, run_job
from loki.implanting.training.lever_plan import LeverPlan
from loki.implanting.training.levers import Levers
from loki.implanting.training.material import Material
from loki.implanting.training.output import TrainingResult
from loki.implanting.training.replay import Replay
from loki.implanting.training.rows import NOTHING_CHANGED
from loki.implanting.training.study import Job
from loki.models.checkpoint import Checkpoint
from loki.models.experts import Experts
from loki.models.model_directory import ModelDirectory
from loki.models.side_files import copy_side_files
from loki.ranks import pick_device


@dataclass(frozen=True)
class LlamaFactorySettings:
    """What only LlamaFactory has.

    Attributes:
        template: name of one of its chat templates; None for the tokenizer's own.
        processes: number of processes; None takes one per GPU.
        deepspeed: train with DeepSpeed ZeRO-2.
        python: Python of an environment with LlamaFactory and LoKI; None finds one, see `find_interpreter`.

    Raises:
        LokiError: if there is to be less than one process.
    """

    template: str | None = None
    processes: int | None = None
    deepspeed: bool = False
    python: Path | None = None

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise LokiError(f"--processes {self.processes} is out of range: it must be at least 1")
        if self.python is not None:
            object.__setattr__(self, "python", Path(self.python))  # a text in a file of settings


def train_with_llamafactory(
    model: str | Path,
    data: Data,
    output: Path,
    settings: TrainingSettings | None = None,
    llamafactory: LlamaFactorySettings | None = None,
    *,
    positions: Path | None = None,
    eval_data: Data | None = None,
    data_settings: DataSettings | None = None,
    levers: Levers | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train the selected rows of a model with LlamaFactory, in a process and an environment of its own.

    Everything that LlamaFactory reads is written to `output/llamafactory`; it writes checkpoints and the trained LoKI
    model to `output`. An interrupted training continues from its last checkpoint when it is started again with the
    same settings.

    Args:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data, see `load_training_data`.
        output: where to write checkpoints and the trained LoKI model, with tokenizer, log and loss plot.
        settings: how to train; None takes the defaults.
        llamafactory: what only LlamaFactory has; None takes the defaults.
        positions: positions file, for an ordinary model.
        eval_data: held-out data in the same form; its loss is computed whenever a checkpoint is saved.
        data_settings: which part of the data, and how conversations are rendered; None takes the defaults.
        levers: what keeps damage low; None uses nothing of it.
        overwrite: start anew where `output` holds something.
        trust_remote_code: run Python code that the model brings along.
        console: where to say what is trained (default: nowhere).
        progress: where to show how far it has come (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, where LlamaFactory is missing or fails, or no row changed.
    """
    settings, data_settings = settings or TrainingSettings(), data_settings or DataSettings()
    job = Job(model, data, output, settings, positions, eval_data, data_settings, trust_remote_code)
    backend = LlamaFactory(llamafactory or LlamaFactorySettings(), progress, levers or Levers())
    return run_job(backend, job, overwrite=overwrite, console=console, progress=progress)


def check_llamafactory(own: LlamaFactorySettings, settings: TrainingSettings, levers: Levers) -> None:
    """Refuse what LlamaFactory cannot train, whatever the model and the data.

    Args:
        own: what only LlamaFactory has.
        settings: how to train.
        levers: what keeps damage low.

    Raises:
        LokiError: for quantised weights, on which it trains adapters alone; and for examples to mix into those that its
            own template makes.
    """
    if settings.bits:
        raise LokiError(f"--load-in-{settings.bits}bit needs --backend trl")
    if levers.replay and own.template:
        raise LokiError(
            "--replay mixes in examples of the tokenizer's own chat template: leave out --template, or mix by "
            "weight: --data new.jsonl:0.99 --data general.jsonl:0.01"
        )


@dataclass
class LlamaFactory:
    """LlamaFactory as a `Backend`.

    Attributes:
        own: what only it has.
        progress: where to show how far it has come.
        levers: what keeps damage low.
    """

    own: LlamaFactorySettings
    progress: Progress | None = None
    levers: Levers = field(default_factory=Levers)
    name: str = field(default="llamafactory", init=False)
    by: str = field(default=" by LlamaFactory", init=False)

    def __post_init__(self) -> None:
        self._python = find_interpreter(self.own.python, deepspeed=self.own.deepspeed)
        self.processes = self.own.processes or max(1, torch.cuda.device_count())
        # DeepSpeed wants torchrun for one process too, and so does LlamaFactory where it sees several GPUs.
        self._torchrun = self.own.deepspeed or max(self.own.processes or 1, torch.cuda.device_count()) > 1
        self._replay: Replay | None = None
        self._plan: LeverPlan

    @property
    def foreign_template(self) -> bool:
        """Whether one of its chat templates is used."""
        return self.own.template is not None

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model; ZeRO-2 shards gradients and optimiser alone."""
        return False

    @property
    def inputs(self) -> list[Path]:
        """What the levers read."""
        return self.levers.inputs

    @property
    def rows_kept_beside(self) -> bool:
        """Whether checkpoints hold the exact rows beside the weights."""
        return not self.own.deepspeed

    def record(self) -> dict[str, Any]:
        """What decides the result beside the job's settings."""
        own = {"template": self.own.template, "deepspeed": self.own.deepspeed, "processes": self.processes}
        return own | self.levers.record(self._replay)

    def check(self, job: Job, material: Material) -> None:
        """Read what the levers read, and refuse what LlamaFactory cannot train.

        Raises:
            LokiError: for what `check_llamafactory` refuses; rows of all experts, which it does not save as rows; or
                data of the levers that cannot be used.
        """
        if getattr(material.config, "experts", None) == Experts.ALL:
            raise LokiError("a LoKI model of --experts all needs --backend trl")
        check_llamafactory(self.own, job.settings, self.levers)
        self._plan = self.levers.plan(material)
        self._replay = self.levers.read_replay(material, seed=job.settings.seed)

    def train(self, job: Job, prepared: Prepared, console: Console) -> int:
        """Write what LlamaFactory reads, start it, and follow it to its end."""
        run = RunDirectory(job.output / NAME)
        loki_model = _loki_model(
            prepared.material.directory, job.positions, run, resume=prepared.resume_from is not None
        )
        self._describe(job, prepared, run, loki_model, console)
        console.print(f"Its log: {run.log}", soft_wrap=True)
        words = command(self._python, run.configuration, processes=self.processes if self._torchrun else None)
        launch(words, run, job.output, progress=self.progress)
        outcome = json.loads(run.outcome.read_text(encoding="utf-8")) if self._plan.keeps else {}
        if said := outcome.get("said", "").strip():
            console.print(said, soft_wrap=True, markup=False)
        copy_side_files(loki_model, job.output)  # it saves the tokenizer anew, and nothing else of the base's
        positions = filter(None, prepared.material.config.target_pos)
        rows = dict(zip(loki_linears(prepared.material.skeleton), positions, strict=True))
        if outcome.get("nothing_trained"):
            return 0
        return _changed_rows(Checkpoint(loki_model), Checkpoint(job.output), rows)

    def _describe(self, job: Job, prepared: Prepared, run: RunDirectory, loki_model: Path, console: Console) -> None:
        """Write the data, the levers and the configuration."""
        material = prepared.material
        entries: dict[str, dict[str, Any]] = {}
        if self.foreign_template:
            entries = {name: write_dataset(part, run.data(name)) for name, part in material.records.items()}
        else:
            packed_to = material.max_length if job.settings.packing else None
            examples = material.examples.dataset
            if self._replay:
                examples = self._replay.mixed(examples, console)
            held_out = material.held_out.dataset if material.held_out else None
            write_tokenised(examples, held_out, run.tokenised, packed_to=packed_to)
        run.outcome.unlink(missing_ok=True)
        run.levers.unlink(missing_ok=True)
        if self._plan.keeps:
            write_json(run.levers, asdict(self._plan), indent=None)
        cuda, dtype = torch.cuda.is_available(), material.config.dtype
        run.write(
            configuration(
                prepared.plan.settings,
                model=loki_model,
                dataset_folder=run.path,
                output=job.output,
                learning_rate=prepared.plan.learning_rate,
                template=self.own.template or NO_TEMPLATE,
                tokenised=None if self.foreign_template else run.tokenised,
                evaluate="held_out" in material.records,
                # As with TRL: frozen weights keep their type; wider ones are computed with in bfloat16.
                bf16=cuda and dtype in (None, torch.float32) and torch.cuda.is_bf16_supported(),
                use_cpu=pick_device().type == "cpu",
                resume_from=prepared.resume_from,
                deepspeed=run.deepspeed if self.own.deepspeed else None,
            ),
            entries,
            DEEPSPEED_ZERO_2 if self.own.deepspeed else None,
        )


def _loki_model(model: ModelDirectory, positions: Path | None, run: RunDirectory, *, resume: bool) -> Path:
    if positions is None:
        return model.path
    if not (resume and run.model.is_dir()):
        create_loki_model(model_name=model, target_pos_path=positions, save_dir=run.model, overwrite=True)
    return run.model


def _changed_rows(before: Checkpoint, after: Checkpoint, positions: dict[str, list[int]]) -> int:
    changed = 0
    for name, rows in positions.items():
        old, new = (checkpoint.tensor(f"{name}.weight")[rows] for checkpoint in (before, after))
        if not new.isfinite().all():
            raise LokiError(f"rows of {name} became NaN or infinite in training: lower the learning rate")
        changed += int((old != new.to(old.dtype)).any(dim=1).sum())
    if not changed:
        raise LokiError(NOTHING_CHANGED)
    return changed
