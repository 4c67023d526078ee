"""Entry point of the command line: runs the application and turns errors into one line and an exit code."""

import importlib
import logging
import sys

from rich.markup import escape

from loki.cli.app import app, error_console
from loki.cli.failures import explain
from loki.errors import LokiError, RankError

INTERRUPTED = 130
CONTINUED = ("analyse", "train", "run")  # the commands that go on where they stopped
COMMANDS = (
    "analyse",
    "merge",
    "inspect",
    "select",
    "create",
    "adapter",
    "train",
    "restore",
    "verify",
    "suppress",
    "export_lora",
    "merge_adapters",
    "run",
    "demo",
)


def main() -> None:
    """Run `loki` with the arguments of this process."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of kernels it could use
    logging.getLogger("DeepSpeed").addFilter(_other_than_no_gpu)  # it writes to standard output, among our lines
    for command in COMMANDS:
        importlib.import_module(f"loki.cli.{command}")
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    resumes = arguments[:1] and arguments[0] in CONTINUED
    try:
        app(arguments, prog_name="loki")
    except LokiError as error:
        if debug:
            raise
        _print_error(str(error), own=isinstance(error, RankError))
        sys.exit(error.exit_code)
    except SystemExit as left:
        if left.code == INTERRUPTED:  # Typer makes this of Ctrl-C
            _print_error("interrupted" + (": run the same command again to continue" if resumes else ""))
        raise
    except Exception as error:
        reason = explain(error)
        if debug or reason is None:
            raise
        _print_error(reason, own=True)
        sys.exit(2)


def _other_than_no_gpu(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def _print_error(message: str, *, own: bool = False) -> None:
    if own:  # nobody else knows of it
        error_console.quiet = False
    error_console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
