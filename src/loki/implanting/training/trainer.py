"""Training a LoKI model with TRL's SFTTrainer, in one process or many."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import (
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from loki.artefacts.trainer_state import STATE
from loki.artefacts.training_settings import Loss, TrainingSettings
from loki.data.settings import DataSettings
from loki.data.sources import Data
from loki.errors import LokiError, RankError, out_of_memory
from loki.implanting.sharding import refuse_zero_3
from loki.implanting.training.arguments import sft_arguments, sharding_of_this_run
from loki.implanting.training.encoded import Encoded, sample
from loki.implanting.training.job import Prepared, find_rate, run_job
from loki.implanting.training.learned import measure
from loki.implanting.training.lever_plan import LeverPlan
from loki.implanting.training.levers import Levers
from loki.implanting.training.material import Material
from loki.implanting.training.output import TrainingResult, memory_advice, resume_advice
from loki.implanting.training.quantised import check_quantised, load_to_train
from loki.implanting.training.rate_search import RateSearch
from loki.implanting.training.replay import Replay
from loki.implanting.training.resuming import take_up_ended
from loki.implanting.training.rows import SelectedRows
from loki.implanting.training.sft_trainer import RowsTrainer
from loki.implanting.training.study import Job
from loki.models.side_files import copy_side_files
from loki.ranks import Ranks


def train(
    model: str | Path,
    data: Data,
    output: Path,
    settings: TrainingSettings | None = None,
    *,
    positions: Path | None = None,
    eval_data: Data | None = None,
    data_settings: DataSettings | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    levers: Levers | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train the selected rows of a model; loss is taken on completions and assistants' answers.

    An interrupted training continues from its last checkpoint when it is started again with the same settings. Started
    by `accelerate launch` or `torchrun`, the processes share the work as their configuration says (data parallel, FSDP2
    or DeepSpeed ZeRO-2); all of them call this, and the main one writes and prints.

    Args:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data, see `load_training_data`.
        output: where to write checkpoints and the trained LoKI model, with tokenizer, log and loss plot.
        settings: how to train; None takes the defaults.
        positions: positions file, for an ordinary model.
        eval_data: held-out data in the same form; its loss is computed whenever a checkpoint is saved.
        data_settings: which part of the data, and how conversations are rendered; None takes the defaults.
        callbacks: further Transformers callbacks.
        levers: what keeps damage low; None uses nothing of it.
        overwrite: start anew where `output` holds something.
        trust_remote_code: run Python code that the model brings along.
        console: where to say what is trained (default: nowhere).
        progress: where to show how far it has come (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, a loss that is NaN, or no row changed. Of several processes only the main
            one raises it, and the others exit with its code.
        RankError: if a process runs out of memory.
    """
    settings, data_settings, levers = (
        settings or TrainingSettings(),
        data_settings or DataSettings(),
        levers or Levers(),
    )
    job = Job(model, data, output, settings, positions, eval_data, data_settings, trust_remote_code)
    return run_job(TRL(callbacks, progress, levers), job, overwrite=overwrite, console=console, progress=progress)


def tune(
    model: str | Path,
    data: Data,
    output: Path,
    settings: TrainingSettings | None = None,
    *,
    positions: Path | None = None,
    eval_data: Data | None = None,
    data_settings: DataSettings | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> RateSearch:
    """Find the learning rate that `train` with the same arguments would find; `train` then continues from it.

    An interrupted search goes on where it stopped. Arguments are those of `train`.

    Raises:
        LokiError: for bad input of any kind, or where no rate learns within `settings.rate_damage`.
    """
    settings, data_settings = settings or TrainingSettings(), data_settings or DataSettings()
    job = Job(model, data, output, settings, positions, eval_data, data_settings, trust_remote_code)
    return find_rate(TRL(), job, overwrite=overwrite, progress=progress)


def check_trl(settings: TrainingSettings) -> None:
    """Refuse what TRL cannot train here, whatever the model and the data.

    Raises:
        LokiError: for a loss that LlamaFactory alone has, and for what `check_quantised` refuses.
    """
    if settings.loss in (Loss.ASFT, Loss.EAFT):
        raise LokiError(f"--loss {settings.loss} needs --backend llamafactory: TRL has nll and dft")
    check_quantised(settings, sharded=sharding_of_this_run() is not None)


@dataclass
class TRL:
    """TRL's SFTTrainer as a `Backend`.

    Attributes:
        callbacks: further Transformers callbacks.
        progress: where to show how far it has come.
        levers: what keeps damage low.
    """

    callbacks: Sequence[TrainerCallback] = ()
    progress: Progress | None = None
    levers: Levers = field(default_factory=Levers)
    name: str = field(default="trl", init=False)
    by: str = field(default="", init=False)
    foreign_template: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._sharding = sharding_of_this_run()
        self._replay: Replay | None = None
        self._plan: LeverPlan

    @property
    def inputs(self) -> list[Path]:
        """What the levers read."""
        return self.levers.inputs

    @property
    def rows_kept_beside(self) -> bool:
        """Whether checkpoints hold the exact rows beside the weights."""
        return self._sharding is None

    @property
    def sharded(self) -> bool:
        """Whether something of a training lies in several processes, so that none can try a rate by itself."""
        return self._sharding is not None

    @property
    def processes(self) -> int:
        """Number of processes that share the examples of a step."""
        return Ranks.current().count

    def record(self) -> dict[str, Any]:
        """What decides the result beside the job's settings."""
        return {"processes": self.processes, "sharding": self._sharding, **self.levers.record(self._replay)}

    def check(self, job: Job, material: Material) -> None:
        """Read what the levers read, and refuse DeepSpeed ZeRO-3, whose settings are known once arguments were made.

        Raises:
            LokiError: if it is on, or the levers' data cannot be used.
        """
        check_trl(job.settings)
        self._plan = self.levers.plan(material)
        self._replay = self.levers.read_replay(material, seed=job.settings.seed)
        # Held while it is asked: Transformers keeps no more than a weak reference to DeepSpeed's settings.
        arguments = _arguments(job.settings, job.output, material, learning_rate=1.0)
        refuse_zero_3()
        del arguments

    def train(self, job: Job, prepared: Prepared, console: Console) -> int:
        """Train, in every process of the run; the main one writes."""
        ranks = Ranks.current()
        material, plan, resume_from = prepared.material, prepared.plan, prepared.resume_from
        # Not by `load_model`: under FSDP2 with loading on rank 0, the other processes have no weights to move yet.
        model = ranks.on_all(lambda: load_to_train(material.config, material.directory.path, job.settings))
        # No checkpoint holds tied weights twice; the trainer would take them for lost where it resumes.
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *_tied(model)}

        def accuracy(now: PreTrainedModel) -> float:
            return measure(now, sample(material.encoded), batch_size=plan.settings.batch_size).exact

        levers = ranks.on_all(lambda: self._plan.prepare(model, console, accuracy))  # while it is the base
        examples = material.examples.dataset
        if self._replay:
            examples = self._replay.mixed(examples, console)
        rows = SelectedRows(model, resume_from)
        patience = plan.settings.early_stopping
        trainer = RowsTrainer(
            model=model,
            args=_arguments(plan.settings, job.output, material, plan.learning_rate),
            train_dataset=examples,
            eval_dataset=material.held_out.dataset if material.held_out else None,
            processing_class=material.tokenizer,
            callbacks=[
                rows,
                *levers.callbacks,
                *([EarlyStoppingCallback(patience)] if patience else []),
                *self.callbacks,
                *([StopsWhenKnown(material.encoded, plan.settings.batch_size)] if plan.stops_when_known else []),
                LogsAllSteps(),
                *([ShowsProgress(self.progress)] if self.progress else []),
            ],
            keep=levers.term,
        )
        if console.quiet or self.progress:
            trainer.remove_callback(PrinterCallback)
        ended = resume_from if self.rows_kept_beside else None
        try:
            if ended is None or not take_up_ended(trainer, model, ended):
                trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise RankError(memory_advice(error) + resume_advice(job.output)) from error
        except LokiError as error:  # of a callback, which every process called
            ranks.raise_once(error)
        changed = 0 if levers.nothing_trained else ranks.on_all(lambda: rows.changed_rows(model))
        if rows.vanished:
            console.print(
                f"{rows.vanished} more rows changed by less than their type can hold, and are saved unchanged: train "
                "longer, at a higher rate, or a model made with `loki create --dtype float32`",
                highlight=False,
                soft_wrap=True,
            )
        _keep_use_cache(model.config, material.config)
        _save(trainer, material.directory.path, job.output, ranks)
        return changed


class StopsWhenKnown(TrainerCallback):  # type: ignore[misc]
    """Ends training after the first epoch at whose end all examples (of a sample) are reproduced exactly.

    Args:
        examples: what is trained on.
        batch_size: examples per forward pass.
    """

    def __init__(self, examples: Sequence[Encoded], batch_size: int) -> None:
        self._examples = sample(examples)
        self._batch_size = batch_size

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the examples; in several processes each comes to the same answer, as they hold the same rows."""
        del args, state
        known = measure(kwargs["model"], self._examples, batch_size=self._batch_size).exact == 1
        control.should_training_stop |= known


class LogsAllSteps(TrainerCallback):  # type: ignore[misc]
    """Has the loss logged whenever a checkpoint is saved or training ends, so that no step is missing from the log."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log before what was summed up is forgotten."""
        del args, state, kwargs
        control.should_log |= control.should_save or control.should_training_stop

    on_epoch_end = on_step_end


class ShowsProgress(TrainerCallback):  # type: ignore[misc]
    """Shows the steps done and the last loss.

    Args:
        progress: where.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=None)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show what was done before an interruption."""
        del args, control, kwargs
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step more."""
        del args, control, kwargs
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The last loss."""
        del args, state, control
        if "loss" in (kwargs.get("logs") or {}):
            self._progress.update(self._task, description=f"training, loss {float(kwargs['logs']['loss']):.4f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take it away."""
        del args, state, control, kwargs
        self._progress.remove_task(self._task)


def _arguments(settings: TrainingSettings, output: Path, material: Material, learning_rate: float) -> SFTConfig:
    return sft_arguments(
        settings,
        output,
        learning_rate=learning_rate,
        max_length=material.max_length,
        dtype=material.config.dtype or torch.float32,
        evaluate=material.held_out is not None,
    )


def _keep_use_cache(trained: PretrainedConfig, given: PretrainedConfig) -> None:
    """Put back what the trainer switches off, and take away what it adds to the configuration of a wrapper."""
    if hasattr(given, "use_cache"):
        trained.use_cache = given.use_cache
    elif hasattr(trained, "use_cache"):
        del trained.use_cache


def _tied(model: PreTrainedModel) -> set[str]:
    """Names under which a parameter is found a second time."""
    once, twice = (dict(model.named_parameters(remove_duplicate=remove)) for remove in (True, False))
    return twice.keys() - once.keys()


def _save(trainer: SFTTrainer, source: Path, output: Path, ranks: Ranks) -> None:
    """Save the trained model beside, then move its files into `output`. All processes call this; one writes.

    Tokenizer and other side files are those of `source`, to the last bit.
    """
    folder = output / ".final"
    if ranks.main:
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    trainer.save_model(str(folder))
    if ranks.main:
        copy_side_files(source, folder)
        for file in sorted(folder.iterdir()):
            if (output / file.name).is_dir():
                shutil.rmtree(output / file.name)
            file.replace(output / file.name)
        folder.rmdir()
        trainer.state.save_to_json(str(output / STATE))
    ranks.wait()
