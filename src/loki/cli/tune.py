"""`loki tune`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.artefacts.training_settings import RATE_DAMAGE, TrainingSettings
from loki.cli.app import app, console, say
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Data, PositionsOfOrdinary, Trainable, TrustRemoteCode
from loki.data.settings import DataSettings


@app.command()
@with_options(
    leave_out=("settings.learning_rate", "settings.rate_damage"), settings=TrainingSettings, data_settings=DataSettings
)
def tune(
    model: Trainable,
    data: Data,
    output: Annotated[Path, typer.Option("--output", help="Directory that `loki train` will write to.")],
    positions: PositionsOfOrdinary = None,
    eval_data: Annotated[str | None, typer.Option("--eval-data", help="Held-out data to judge by.")] = None,
    rate_damage: Annotated[
        float,
        typer.Option(
            "--rate-damage", help="Most KL(base || model) that a rate may cost, in nats per token of general text."
        ),
    ] = RATE_DAMAGE,
    *,
    data_settings: DataSettings,
    settings: TrainingSettings,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where the output holds something.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find a learning rate: a few are tried for some steps, the better ones for more, under a budget of damage.

    `loki train` with the same options, --rate-damage among them, goes on with what was found.

    Example:
        loki tune loki_model --data train.jsonl --output trained
    """
    from dataclasses import asdict, replace

    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries
    from loki.implanting.training.trainer import tune as find_rate
    from loki.report.rate_table import rate_table

    quiet_libraries()
    with progress_bar() as progress:
        found = find_rate(
            model,
            data,
            output,
            replace(settings, rate_damage=rate_damage),
            positions=positions,
            eval_data=eval_data,
            data_settings=data_settings,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    console.print(rate_table(found).rich())
    again = f"loki train {model} --output {output} --rate-damage {rate_damage:g}"
    say(
        f"{found}; with the same options, {again} goes on from here",
        learning_rate=found.learning_rate,
        trials=[asdict(trial) for trial in found.trials],
    )
