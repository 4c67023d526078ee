"""Training with the back end of a name: what each can do, and the call."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback

from loki.artefacts.training_settings import BackendName, TrainingSettings
from loki.data.settings import DataSettings
from loki.data.sources import Data
from loki.errors import LokiError
from loki.implanting.llamafactory.interpreter import find_interpreter
from loki.implanting.llamafactory.train import LlamaFactorySettings, train_with_llamafactory
from loki.implanting.training.levers import Levers
from loki.implanting.training.output import TrainingResult
from loki.implanting.training.trainer import train


def check_backend(backend: BackendName, levers: Levers, llamafactory: LlamaFactorySettings) -> None:
    """Refuse what a back end cannot do, or has no use for.

    Args:
        backend: who is to train.
        levers: what keeps damage low.
        llamafactory: what only LlamaFactory has.

    Raises:
        LokiError: if the levers need another back end, LlamaFactory's settings are given to TRL, or LlamaFactory is to
            train and is not installed.
    """
    if backend is BackendName.TRL:
        if llamafactory.template or llamafactory.processes or llamafactory.deepspeed:
            raise LokiError("--template, --processes and --deepspeed need --backend llamafactory")
    elif levers.keep is not None or levers.max_damage is not None:
        raise LokiError("--keep and --max-damage change the loss of a step, which LlamaFactory computes: use TRL")
    elif levers.replay is not None:
        raise LokiError(
            "--replay needs --backend trl; or mix by weight: --data new.jsonl:0.99 --data general.jsonl:0.01"
        )
    else:
        find_interpreter(llamafactory.python, deepspeed=llamafactory.deepspeed)


def train_by(
    backend: BackendName,
    model: str | Path,
    data: Data,
    output: Path,
    settings: TrainingSettings,
    *,
    levers: Levers,
    llamafactory: LlamaFactorySettings,
    positions: Path | None = None,
    eval_data: Data | None = None,
    data_settings: DataSettings | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    overwrite: bool = False,
    trust_remote_code: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train the selected rows of a model with TRL or LlamaFactory, see `train` and `train_with_llamafactory`.

    Args:
        backend: who trains.
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data.
        output: where to write checkpoints and the trained LoKI model.
        settings: how to train.
        levers: what keeps damage low; of TRL only.
        llamafactory: what only LlamaFactory has.
        positions: positions file, for an ordinary model.
        eval_data: held-out data in the same form.
        data_settings: which part of the data, and how conversations are rendered; None takes the defaults.
        callbacks: further Transformers callbacks; of TRL only.
        trust_remote_code: run Python code that the model brings along.
        overwrite: start anew where `output` holds something.
        console: where to say what is trained (default: nowhere).
        progress: where to show how far it has come (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, and what `check_backend` refuses.
    """
    check_backend(backend, levers, llamafactory)
    if backend is BackendName.LLAMAFACTORY:
        return train_with_llamafactory(
            model,
            data,
            output,
            settings,
            llamafactory,
            positions=positions,
            eval_data=eval_data,
            data_settings=data_settings,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            console=console,
            progress=progress,
        )
    return train(
        model,
        data,
        output,
        settings,
        positions=positions,
        eval_data=eval_data,
        data_settings=data_settings,
        callbacks=callbacks,
        levers=levers,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        console=console,
        progress=progress,
    )
