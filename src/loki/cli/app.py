"""The Typer application. Every command lives in a file of its own in this folder and registers itself here."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.output import console, error_console, say, warn, warnings_as_lines

__all__ = ["app", "console", "error_console", "say", "warn", "warnings_as_lines"]

app = typer.Typer(
    name="loki",
    help="LoKI: teach a causal language model something new without losing what it knows.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors and warnings.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object, alone on standard output.")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="Add all that is said to this file, with the time.")
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version of LoKI.")] = False,
) -> None:
    """Options of every command, for `loki --help`; `loki.cli.main` takes them from anywhere in the arguments."""
    del debug, quiet, as_json, log_file, version
