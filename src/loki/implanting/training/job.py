"""The steps of a training, whoever trains: read and check, prepare the output, say what is trained, train, finish."""

import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress

from loki.artefacts.run_layout import TRAINING
from loki.artefacts.run_records import nothing_left_of_none
from loki.artefacts.training_settings import Rate, check_held_out, check_reporter
from loki.data.preparing import save_chat_template
from loki.errors import LokiError
from loki.files import protect_inputs
from loki.implanting.create import write_loki_card
from loki.implanting.training.material import Material, read_material
from loki.implanting.training.output import TrainingResult, finish, prepare_output, training_record
from loki.implanting.training.planning import Plan, kept_search, plan_training
from loki.implanting.training.rate_search import RateSearch
from loki.implanting.training.study import Job, Study
from loki.locks import held
from loki.ranks import Ranks

_PATIENCE = timedelta(hours=1)  # for the main process to prepare the data, or for one that has died


@dataclass(frozen=True)
class Prepared:
    """What is known once everything was checked.

    Attributes:
        material: what the job reads.
        plan: how to train.
        resume_from: checkpoint to continue from, if any.
    """

    material: Material
    plan: Plan
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
    def inputs(self) -> list[Path]:
        """The files and directories that it reads beside the job's."""

    @property
    def rows_kept_beside(self) -> bool:
        """Whether a checkpoint is worth nothing without the exact rows beside it."""

    @property
    def sharded(self) -> bool:
        """Whether something of a training lies in several processes, so that none can try a rate by itself."""

    @property
    def processes(self) -> int:
        """Number of processes that share the examples of a step."""

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


def run_job(
    backend: Backend,
    job: Job,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train; an interrupted training with the same job continues from its last checkpoint.

    All processes of a run call this; the main one prints, and writes what is not the back end's.

    Args:
        backend: who trains.
        job: what and how.
        overwrite: start anew where the output holds something.
        console: where to say what is trained (default: nowhere).
        progress: where to show how far the search for a rate has come (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, a training that fails, or no row changed. Of several processes only the
            main one raises it, and the others exit with its code.
    """
    ranks = Ranks.current(_PATIENCE)
    console = console if console and ranks.main else Console(quiet=True)
    with ExitStack() as stack:
        stack.enter_context(nothing_left_of_none(job.output, TRAINING) if ranks.main else nullcontext())
        return _run(backend, job, ranks, console, stack, overwrite=overwrite, progress=progress)


def _run(
    backend: Backend,
    job: Job,
    ranks: Ranks,
    console: Console,
    stack: ExitStack,
    *,
    overwrite: bool,
    progress: Progress | None,
) -> TrainingResult:
    started, settings = time.monotonic(), job.settings

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    material, record, resume_from = _begin(backend, job, ranks, stack, overwrite=overwrite)
    study = Study(job, material, progress)
    can_try = _can_try(backend, material)
    search = (lambda: kept_search(job.output, record, study.search)) if can_try else None
    plan = ranks.on_main(lambda: plan_training(settings, material, processes=backend.processes, search=search))
    before = ranks.on_main(study.before) if can_try else None
    study.close()
    say(f"{material.summary}")
    if plan.search:
        say(f"{plan.search}")
    say(
        f"{material.trainable_parameters:,} of {material.parameters:,} parameters are trained{backend.by}, "
        f"learning rate {plan.learning_rate:.3g}{plan.reason}"
        + (f", {backend.processes} processes" if backend.processes > 1 else "")
        + (
            f", {material.max_length} tokens per example, as the model has no more positions"
            if material.max_length < settings.max_length
            else ""
        )
        + (f", resuming from {resume_from.name}" if resume_from else "")
    )
    changed = backend.train(job, Prepared(material, plan, resume_from), console)
    if job.data_settings.chat_template:
        ranks.on_main(lambda: save_chat_template(material.tokenizer, job.output))
    learned = ranks.on_main(lambda: study.learned(before)) if before else None
    ranks.on_main(lambda: write_loki_card(job.output, material.config, name=job.output.name, trained=job.output))
    steps, loss = ranks.on_main(
        lambda: finish(job.output, record, learning_rate=plan.learning_rate, learned=learned, changed_rows=changed)
    )
    return TrainingResult(
        output=job.output,
        steps=steps,
        loss=loss,
        trainable_parameters=material.trainable_parameters,
        changed_rows=changed,
        seconds=time.monotonic() - started,
        learning_rate=plan.learning_rate,
        learned=learned,
        search=plan.search,
    )


def find_rate(backend: Backend, job: Job, *, overwrite: bool = False, progress: Progress | None = None) -> RateSearch:
    """Find the learning rate that `run_job` with the same job would train with; that continues from it.

    Args:
        backend: who will train.
        job: what and how, with an automatic learning rate.
        overwrite: start anew where the output holds something.
        progress: where to show how far it has come.

    Raises:
        LokiError: for bad input of any kind, or where no rate can be tried.
    """
    if job.settings.learning_rate is not Rate.AUTO:
        raise LokiError(f"--learning-rate {job.settings.learning_rate} leaves nothing to find: leave it out")
    ranks = Ranks.current(_PATIENCE)
    with ExitStack() as stack:
        stack.enter_context(nothing_left_of_none(job.output, TRAINING) if ranks.main else nullcontext())
        material, record, _ = _begin(backend, job, ranks, stack, overwrite=overwrite)
        if not _can_try(backend, material):
            raise LokiError("no rate can be tried under FSDP or DeepSpeed: start one process")
        study = Study(job, material, progress)
        return ranks.on_main(lambda: kept_search(job.output, record, study.search))


def _begin(
    backend: Backend, job: Job, ranks: Ranks, stack: ExitStack, *, overwrite: bool
) -> tuple[Material, dict[str, Any], Path | None]:
    """Read and check, and prepare the output: what is trained on, what decides the result, what to resume from.

    Until the stack is closed, no other process works in the output.
    """
    settings = job.settings
    check_held_out(settings, job.eval_data)
    ranks.on_all(lambda: protect_inputs(job.output, *job.inputs, *backend.inputs))
    check_reporter(settings)
    material = ranks.on_all(
        lambda: read_material(
            job.model,
            job.data,
            positions=job.positions,
            eval_data=job.eval_data,
            max_length=settings.max_length,
            data_settings=job.data_settings,
            seed=settings.seed,
            foreign_template=backend.foreign_template,
            trust_remote_code=job.trust_remote_code,
        )
    )
    ranks.on_all(lambda: backend.check(job, material))
    digests = {name: part.digest for name, part in material.records.items()}
    record = training_record(job.model, settings, digests["train"], digests.get("held_out"), job.positions)
    record = {"backend": backend.name, **record, "chat_template": job.data_settings.chat_template, **backend.record()}

    def prepare() -> Path | None:
        stack.enter_context(held(job.output))
        return prepare_output(
            job.output, record, *job.inputs, overwrite=overwrite, rows_kept_beside=backend.rows_kept_beside
        )

    resume_from = ranks.on_main(prepare)
    return material, record, resume_from


def _can_try(backend: Backend, material: Material) -> bool:
    """Nothing can be tried where weights or gradients are sharded, or where the back end makes the examples."""
    return bool(material.tokenised) and not backend.sharded
