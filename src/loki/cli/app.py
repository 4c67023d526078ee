"""The Typer application. Every command lives in a file of its own in this folder and registers itself here."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    name="loki",
    help="LoKI: teach a causal language model something new without losing what it knows.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Of the processes that `accelerate launch` or `torchrun` starts, only the main one speaks.
_silent = os.environ.get("RANK", "0") != "0"
console = Console(quiet=_silent)
error_console = Console(stderr=True, quiet=_silent)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    """Options of every command, for `loki --help`; `loki.cli.main` takes them out of the arguments."""
    del debug


@contextmanager
def warnings_as_lines(category: type[Warning]) -> Iterator[None]:
    """Show the first warning of a category in the block as one line, and those after it not at all."""
    said = False
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_once(message: Warning | str, kind: type[Warning], *place: object) -> None:
            nonlocal said
            if not issubclass(kind, category):
                show(message, kind, *place)  # type: ignore[arg-type]
            elif not said:
                said = True
                error_console.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True, highlight=False)

        warnings.showwarning = show_once  # type: ignore[assignment]
        warnings.simplefilter("always", category)
        yield
