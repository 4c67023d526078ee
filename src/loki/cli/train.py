"""`loki train`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loki.artefacts.training_settings import TrainingSettings
from loki.cli.app import app, console, error_console, say
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Data, PositionsOfOrdinary, Trainable, TrustRemoteCode
from loki.cli.training_options import Published, say_learned, with_published_rate
from loki.data.settings import DataSettings
from loki.errors import LokiError


class Backend(StrEnum):
    """Who trains."""

    TRL = "trl"
    LLAMAFACTORY = "llamafactory"


@app.command()
@with_options(settings=TrainingSettings, data_settings=DataSettings)
def train(
    model: Trainable,
    data: Data,
    output: Annotated[Path, typer.Option("--output", help="Directory for checkpoints and the trained LoKI model.")],
    positions: PositionsOfOrdinary = None,
    backend: Annotated[
        Backend, typer.Option("--backend", help="Who trains: TRL, or LlamaFactory in its own environment.")
    ] = Backend.TRL,
    eval_data: Annotated[
        str | None, typer.Option("--eval-data", help="Held-out data; its loss is computed with every checkpoint.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help="General text that the model is held to its base on: a .txt or JSONL file, MMLU; or new: the prompts "
            "of --data.",
            metavar="DATA",
        ),
    ] = None,
    keep_weight: Annotated[
        float, typer.Option("--keep-weight", help="With --keep: weight of KL(base || model) in the loss.")
    ] = 1.0,
    max_damage: Annotated[
        float | None,
        typer.Option(
            "--max-damage", help="With --keep: stop, and go back, where KL per token on that text exceeds so many nats."
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option("--replay", help="General examples to mix in, in any form of training data.", metavar="DATA"),
    ] = None,
    replay_fraction: Annotated[
        float, typer.Option("--replay-fraction", help="With --replay: their share among all examples.")
    ] = 0.01,
    *,
    data_settings: DataSettings,
    settings: TrainingSettings,
    published: Published = False,
    template: Annotated[
        str | None, typer.Option("--template", help="LlamaFactory: its chat template. Default: the tokenizer's own.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", help="LlamaFactory: number of processes. Default: one per GPU.")
    ] = None,
    deepspeed: Annotated[bool, typer.Option("--deepspeed", help="LlamaFactory: with DeepSpeed ZeRO-2.")] = False,
    llamafactory_python: Annotated[
        Path | None,
        typer.Option(
            "--llamafactory-python",
            envvar="LOKI_LLAMAFACTORY_PYTHON",
            help="LlamaFactory: Python to run it with. Default: this one, or that of .venv-llamafactory.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where the output holds something.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train the selected rows with TRL or LlamaFactory; an interrupted training goes on from its last checkpoint.

    Several processes, started with `accelerate launch -m loki train ...`, share the work.

    Example:
        loki train loki_model --data train.jsonl --output trained --epochs 3
    """
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries
    from loki.implanting.llamafactory.train import LlamaFactorySettings, train_with_llamafactory
    from loki.implanting.training.levers import Levers
    from loki.implanting.training.trainer import train as train_rows
    from loki.ranks import started_alone

    if backend is Backend.TRL and (template or processes or deepspeed):
        raise LokiError("--template, --processes and --deepspeed need --backend llamafactory")
    if backend is Backend.LLAMAFACTORY and (keep is not None or max_damage is not None):
        raise LokiError("--keep and --max-damage change the loss of a step, which LlamaFactory computes: use TRL")
    if backend is Backend.LLAMAFACTORY and replay is not None:
        raise LokiError(
            "--replay needs --backend trl; or mix by weight: --data new.jsonl:0.99 --data general.jsonl:0.01"
        )
    if started_alone():
        error_console.print("one process was started: on CPUs, accelerate launch starts several with --multi_gpu")
    quiet_libraries()
    settings = with_published_rate(settings, published)
    with progress_bar() as progress:
        if backend is Backend.TRL:
            result = train_rows(
                model,
                data,
                output,
                settings,
                positions=positions,
                eval_data=eval_data,
                levers=Levers(
                    keep=keep,
                    keep_weight=keep_weight,
                    max_damage=max_damage,
                    replay=replay,
                    replay_fraction=replay_fraction,
                ),
                data_settings=data_settings,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
                console=console,
                progress=progress,
            )
        else:
            result = train_with_llamafactory(
                model,
                data,
                output,
                settings,
                LlamaFactorySettings(template, processes, deepspeed, llamafactory_python),
                positions=positions,
                eval_data=eval_data,
                data_settings=data_settings,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
                console=console,
                progress=progress,
            )
    say(
        f"Trained {result.steps} steps in {result.seconds:.0f} s, mean loss {result.loss:.4f}, "
        f"{result.changed_rows} rows changed: {result.output}",
        output=result.output,
        steps=result.steps,
        seconds=result.seconds,
        loss=result.loss,
        trainable_parameters=result.trainable_parameters,
        changed_rows=result.changed_rows,
        learning_rate=result.learning_rate,
    )
    say_learned(result)
