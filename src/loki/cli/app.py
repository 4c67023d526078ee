"""The Typer application. Every command lives in a file of its own in this folder and registers itself here."""

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

console = Console()
error_console = Console(stderr=True)
