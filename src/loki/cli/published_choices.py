"""`--published`: the paper's own choices, whatever the defaults are."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from loki.artefacts.training_settings import Loss
from loki.errors import LokiError
from loki.kva.settings import DEFAULT_STEPS, Definition, IgMethod, Quantity
from loki.selection.strategy import By

Published = Annotated[
    bool, typer.Option("--published", help="The paper's own choices, whatever the defaults are or will be.")
]
ATTRIBUTION: dict[str, Any] = {
    "definition": Definition.CAPTUM,
    "steps": DEFAULT_STEPS,
    "ig_method": IgMethod.TRAPEZOID,
    "quantity": Quantity.PROBABILITY,
    "absolute": False,
    "position": -1,
}
TRAINING: dict[str, Any] = {"protect": 0.0, "keep": None, "max_damage": None, "replay": None, "loss": Loss.NLL}
SELECTION: dict[str, Any] = {"strategy": "layer_balanced", "by": By.SIGNED}


def typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, rather than being a default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_published(context: typer.Context, choices: Mapping[str, Any]) -> None:
    """Check that no option on the command line says otherwise.

    Raises:
        LokiError: if one does.
    """
    for name, value in choices.items():
        if typed(context, name) and context.params[name] != value:
            option = f"--{name.replace('_', '-')} {context.params[name]}"
            raise LokiError(f"--published and {option} exclude each other: leave out one")
