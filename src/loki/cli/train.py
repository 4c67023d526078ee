"""`loki train`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.artefacts.training_settings import BackendName, TrainingSettings
from loki.cli.app import app, console, error_console, say
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Data, PositionsOfOrdinary, Trainable, TrustRemoteCode
from loki.cli.training_options import (
    Backend,
    LeverOptions,
    LlamaFactoryOptions,
    Published,
    say_learned,
    with_published_rate,
)
from loki.data.settings import DataSettings


@app.command()
@with_options(
    settings=TrainingSettings, data_settings=DataSettings, levers=LeverOptions, llamafactory=LlamaFactoryOptions
)
def train(
    model: Trainable,
    data: Data,
    output: Annotated[Path, typer.Option("--output", help="Directory for checkpoints and the trained LoKI model.")],
    positions: PositionsOfOrdinary = None,
    backend: Backend = BackendName.TRL,
    eval_data: Annotated[
        str | None, typer.Option("--eval-data", help="Held-out data; its loss is computed with every checkpoint.")
    ] = None,
    *,
    data_settings: DataSettings,
    settings: TrainingSettings,
    levers: LeverOptions,
    llamafactory: LlamaFactoryOptions,
    published: Published = False,
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
    from loki.implanting.llamafactory.train import LlamaFactorySettings
    from loki.implanting.training.backends import train_by
    from loki.implanting.training.levers import Levers
    from loki.implanting.training.study import Job
    from loki.ranks import started_alone

    if started_alone():
        error_console.print("one process was started: on CPUs, accelerate launch starts several with --multi_gpu")
    quiet_libraries()
    settings = with_published_rate(settings, published)
    with progress_bar() as progress:
        result = train_by(
            backend,
            Job(model, data, output, settings, positions, eval_data, data_settings, trust_remote_code),
            Levers(**vars(levers)),
            LlamaFactorySettings(**llamafactory.settings()),
            overwrite=overwrite,
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
