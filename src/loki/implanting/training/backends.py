"""Training with the back end of a name: what each can do, and the call."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback

from loki.artefacts.training_settings import BackendName, TrainingSettings
from loki.errors import LokiError
from loki.implanting.llamafactory.interpreter import find_interpreter
from loki.implanting.llamafactory.train import LlamaFactory, LlamaFactorySettings, check_llamafactory
from loki.implanting.training.job import run_job
from loki.implanting.training.levers import Levers
from loki.implanting.training.output import TrainingResult
from loki.implanting.training.study import Job
from loki.implanting.training.trainer import TRL, check_trl


def check_backend(
    backend: BackendName, llamafactory: LlamaFactorySettings, settings: TrainingSettings, levers: Levers
) -> None:
    """Refuse what a back end cannot do, or has no use for, before model and data are looked at.

    Args:
        backend: who is to train.
        llamafactory: what only LlamaFactory has.
        settings: how to train.
        levers: what keeps damage low.

    Raises:
        LokiError: if LlamaFactory's settings are given to TRL, or LlamaFactory is to train and is not installed, or
            for what `check_trl` or `check_llamafactory` refuses.
    """
    if backend is BackendName.TRL:
        if llamafactory.template or llamafactory.processes or llamafactory.deepspeed:
            raise LokiError("--template, --processes and --deepspeed need --backend llamafactory")
        check_trl(settings)
    else:
        check_llamafactory(llamafactory, settings, levers)
        find_interpreter(llamafactory.python, deepspeed=llamafactory.deepspeed)


def train_by(
    backend: BackendName,
    job: Job,
    levers: Levers,
    llamafactory: LlamaFactorySettings,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    overwrite: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train the selected rows of a model with TRL or LlamaFactory, see `train` and `train_with_llamafactory`.

    Args:
        backend: who trains.
        job: what and how.
        levers: what keeps damage low.
        llamafactory: what only LlamaFactory has.
        callbacks: further Transformers callbacks; of TRL only.
        overwrite: start anew where the output holds something.
        console: where to say what is trained (default: nowhere).
        progress: where to show how far it has come (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, and what `check_backend` refuses.
    """
    check_backend(backend, llamafactory, job.settings, levers)
    if backend is BackendName.LLAMAFACTORY:
        return run_job(
            LlamaFactory(llamafactory, progress, levers), job, overwrite=overwrite, console=console, progress=progress
        )
    return run_job(TRL(callbacks, progress, levers), job, overwrite=overwrite, console=console, progress=progress)
