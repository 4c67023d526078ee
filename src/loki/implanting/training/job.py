"""The steps of a training, whoever trains: read and check, prepare the output, say what is trained, train, finish."""

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from loki.data.sources import Data, local_paths
from loki.implanting.training.material import Material, quota_of, read_material
from loki.implanting.training.output import TrainingResult, finish, prepare_output, training_record
from loki.implanting.training.settings import TrainingSettings, check_held_out, default_learning_rate
from loki.ranks import Ranks

_PATIENCE = timedelta(hours=1)  # for the main process to prepare the data, or for one that has died


@dataclass(frozen=True)
class Job:
    """One training, as it was asked for.

    Attributes:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data.
        output: where checkpoints and the trained LoKI model go.
        settings: how to train.
        positions: positions file, for an ordinary model.
        eval_data: held-out data.
    """

    model: str | Path
    data: Data
    output: Path
    settings: TrainingSettings
    positions: Path | None = None
    eval_data: Data | None = None

    @property
    def inputs(self) -> tuple[str | Path | None, ...]:
        """What is read, and so must not lie in the output."""
        held_out = local_paths(self.eval_data) if self.eval_data else []
        return self.model, *local_paths(self.data), *held_out, self.positions


@dataclass(frozen=True)
class Prepared:
    """What is known once everything was checked.

    Attributes:
        material: what the job reads.
        learning_rate: peak learning rate.
        resume_from: checkpoint to continue from, if any.
    """

    material: Material
    learning_rate: float
    resume_from: Path | None


class Backend(Protocol):
    """Who trains."""

    @property
    def name(self) -> str:
        """As the record says it."""

    @property
    def by(self) -> str:
        """What to say of it, " by LlamaFactory", if anything."""

    @property
    def foreign_template(self) -> bool:
        """Whether it has a chat template of its own, so that the tokenizer's is not asked."""

    @property
    def rows_kept_beside(self) -> bool:
        """Whether a checkpoint is worth nothing without the exact rows beside it."""

    def record(self) -> dict[str, Any]:
        """What decides the result beside the job's settings, as JSON values."""

    def check(self, job: Job, material: Material) -> None:
        """Refuse what it cannot train, before anything is written; every process calls this.

        Raises:
            LokiError: if it cannot.
        """

    def train(self, job: Job, prepared: Prepared, console: Console) -> int:
        """Train, and leave the trained LoKI model and `trainer_state.json` in the job's output.

        Returns:
            Number of selected rows that changed.

        Raises:
            LokiError: if training fails or no row changed.
        """


def run_job(backend: Backend, job: Job, *, overwrite: bool = False, console: Console | None = None) -> TrainingResult:
    """Train; an interrupted training with the same job continues from its last checkpoint.

    All processes of a run call this; the main one prints, and writes what is not the back end's.

    Args:
        backend: who trains.
        job: what and how.
        overwrite: start anew where the output holds something.
        console: where to say what is trained (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, a training that fails, or no row changed. Of several processes only the
            main one raises it, and the others exit with its code.
    """
    started = time.monotonic()
    ranks, settings = Ranks.current(_PATIENCE), job.settings
    console = console if console and ranks.main else Console(quiet=True)
    check_held_out(settings, job.eval_data)
    material = ranks.together(
        lambda: read_material(
            job.model,
            job.data,
            positions=job.positions,
            eval_data=job.eval_data,
            max_length=settings.max_length,
            foreign_template=backend.foreign_template,
        )
    )
    ranks.together(lambda: backend.check(job, material))
    digests = {name: part.digest for name, part in material.records.items()}
    record = training_record(job.model, settings, digests["train"], digests.get("held_out"), job.positions)
    record = {"backend": backend.name, **record, **backend.record()}
    resume_from = ranks.on_main(
        lambda: prepare_output(
            job.output, record, *job.inputs, overwrite=overwrite, rows_kept_beside=backend.rows_kept_beside
        )
    )
    rate = settings.learning_rate or default_learning_rate(quota_of(material.config))
    console.print(f"{material.summary}", soft_wrap=True)
    console.print(
        f"{material.trainable_parameters:,} of {material.parameters:,} parameters are trained{backend.by}, "
        f"learning rate {rate:.3g}"
        + (f", {ranks.count} processes" if ranks.count > 1 else "")
        + (
            f", {material.max_length} tokens per example, as the model has no more positions"
            if material.max_length < settings.max_length
            else ""
        )
        + (f", resuming from {resume_from.name}" if resume_from else ""),
        soft_wrap=True,
    )
    changed = backend.train(job, Prepared(material, rate, resume_from), console)
    steps, loss = ranks.on_main(lambda: finish(job.output, record, learning_rate=rate))
    return TrainingResult(job.output, steps, loss, material.trainable_parameters, changed, time.monotonic() - started)
