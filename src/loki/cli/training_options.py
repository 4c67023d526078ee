"""What `loki train` and `loki run` share beside the training's settings."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from loki.artefacts.training_settings import Rate, TrainingSettings
from loki.cli.app import console, say, warn
from loki.errors import LokiError

if TYPE_CHECKING:
    from loki.implanting.training.output import TrainingResult

Published = Annotated[
    bool, typer.Option("--published", help="The published learning rate: 1e-5 at quota 30, more for a smaller quota.")
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
