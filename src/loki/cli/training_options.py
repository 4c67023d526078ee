"""What `loki train` and `loki run` share beside the training's settings."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loki.artefacts.training_settings import BackendName, Rate, TrainingSettings
from loki.cli.app import console, say, warn
from loki.errors import LokiError

if TYPE_CHECKING:
    from loki.implanting.training.output import TrainingResult

Published = Annotated[
    bool, typer.Option("--published", help="The published learning rate: 1e-5 at quota 30, more for a smaller quota.")
]


Backend = Annotated[
    BackendName, typer.Option("--backend", help="Who trains: TRL, or LlamaFactory in its own environment.")
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        help="General text that the model is held to its base on: a .txt or JSONL file, MMLU; or new: the prompts of "
        "--data.",
        metavar="DATA",
    ),
]
KeepWeight = Annotated[
    float, typer.Option("--keep-weight", help="With --keep: weight of KL(base || model) in the loss.")
]
MaxDamage = Annotated[
    float | None,
    typer.Option(
        "--max-damage", help="With --keep: stop, and go back, where KL per token on that text exceeds so many nats."
    ),
]
Replay = Annotated[
    str | None,
    typer.Option("--replay", help="General examples to mix in, in any form of training data.", metavar="DATA"),
]
ReplayFraction = Annotated[
    float, typer.Option("--replay-fraction", help="With --replay: their share among all examples.")
]
Template = Annotated[
    str | None, typer.Option("--template", help="LlamaFactory: its chat template. Default: the tokenizer's own.")
]
Processes = Annotated[
    int | None, typer.Option("--processes", help="LlamaFactory: number of processes. Default: one per GPU.")
]
DeepSpeed = Annotated[bool, typer.Option("--deepspeed", help="LlamaFactory: with DeepSpeed ZeRO-2.")]
LlamaFactoryPython = Annotated[
    Path | None,
    typer.Option(
        "--llamafactory-python",
        envvar="LOKI_LLAMAFACTORY_PYTHON",
        help="LlamaFactory: Python to run it with. Default: this one, or that of .venv-llamafactory.",
    ),
]


def with_published_rate(settings: TrainingSettings, published: bool) -> TrainingSettings:
    """The settings with the published rate, where that is asked for.

    Raises:
        LokiError: if another rate is given as well.
    """
    if not published:
        return settings
    if settings.learning_rate not in (Rate.AUTO, Rate.PUBLISHED):
        raise LokiError(f"--published and --learning-rate {settings.learning_rate} exclude each other: leave out one")
    return replace(settings, learning_rate=Rate.PUBLISHED)


def say_learned(result: "TrainingResult") -> None:
    """Print what rates were tried, if their damage was looked at, and what the training has taught."""
    if result.search and result.search.best.damage is not None:
        from loki.report.rate_table import rate_table

        console.print(rate_table(result.search).rich())
    learned = result.learned
    if learned is None:
        return
    say("\n".join(learned.lines()), learned=learned.to_dict())
    if not learned.anything:
        warn(
            f"nothing was learned: the loss on the training data was {learned.before.trained.loss:.3f} and is "
            f"{learned.after.trained.loss:.3f}; raise --learning-rate (without it, one is found), --epochs, or "
            "the quota of rows"
        )
