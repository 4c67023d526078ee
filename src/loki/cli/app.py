"""The Typer application. Every command lives in a file of its own in this folder and registers itself here."""

import os

import typer
from rich.console import Console

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
