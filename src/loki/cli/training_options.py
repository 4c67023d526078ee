"""What `loki train` and `loki run` share beside the training's settings."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


@dataclass(frozen=True)
class LeverOptions:
    """What keeps damage low, beside `--protect`: the fields of `Levers` that are options.

    Attributes:
        keep: general text that the model is held to its base on: a .txt or JSONL file, MMLU; or new: the prompts of
            --data.
        keep_weight: with --keep: weight of KL(base || model) in the loss.
        keep_top_k: with --keep: keep so many of the base's likeliest tokens on disk, and do not ask it at every step.
        max_damage: stop, and go back, where KL per token on the text of --keep exceeds so many nats; without --keep,
            loki run looks at the calibration data.
        replay: general examples to mix in, in any form of training data.
        replay_fraction: with --replay: their share among all examples.
    """

    keep: str | None = None
    keep_weight: float = 1.0
    keep_top_k: int | None = None
    max_damage: float | None = None
    replay: str | None = None
    replay_fraction: float = 0.01


@dataclass(frozen=True)
class LlamaFactoryOptions:
    """What only LlamaFactory has.

    Attributes:
        template: with LlamaFactory: its chat template. Default: the tokenizer's own.
        processes: with LlamaFactory: number of processes. Default: one per GPU.
        deepspeed: with LlamaFactory: DeepSpeed ZeRO-2.
        llamafactory_python: Python to run LlamaFactory with. Default: $LOKI_LLAMAFACTORY_PYTHON, this one, or that of
            .venv-llamafactory.
    """

    template: str | None = None
    processes: int | None = None
    deepspeed: bool = False
    llamafactory_python: Path | None = None

    def settings(self) -> dict[str, Any]:
        """By the names of `LlamaFactorySettings`."""
        values = dict(vars(self))
        return {"python": values.pop("llamafactory_python"), **values}


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
    if not result.changed_rows:
        warn("nothing was trained, as the budget allowed no step: raise --max-damage, or lower --learning-rate")
    elif not learned.anything:
        warn(
            f"nothing was learned: the loss on the training data was {learned.before.trained.loss:.3f} and is "
            f"{learned.after.trained.loss:.3f}; raise --learning-rate (without it, one is found), --epochs, or "
            "the quota of rows"
        )
