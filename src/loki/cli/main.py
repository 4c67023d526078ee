"""Entry point of the command line: runs the application and turns errors into one line and an exit code."""

import importlib
import logging
import sys
from contextlib import ExitStack
from importlib.metadata import version

from rich.markup import escape

from loki.cli.app import app
from loki.cli.failures import explain
from loki.cli.global_options import take_global_options
from loki.cli.output import end_with_json, error_console, speaking
from loki.errors import LokiError, RankError

INTERRUPTED = 130
CONTINUED = ("analyse", "moments", "tune", "train", "run")  # the commands that go on where they stopped
COMMANDS = (
    "analyse",
    "moments",
    "merge",
    "inspect",
    "select",
    "create",
    "adapter",
    "data",
    "tune",
    "train",
    "restore",
    "scale",
    "verify",
    "compare",
    "evaluate",
    "ablate",
    "plot",
    "report",
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
    with ExitStack() as stack:
        try:
            arguments, common = take_global_options(sys.argv[1:])
            stack.enter_context(speaking(quiet=common.quiet, as_json=common.as_json, log_file=common.log_file))
        except LokiError as wrong:
            _print_error(str(wrong))
            sys.exit(wrong.exit_code)
        if common.version:
            print(f"loki {version('loki-llm')}")
            return
        name = next((word for word in arguments if not word.startswith("-")), "")
        code, error = _run(arguments, name, debug=common.debug)
        end_with_json(name, code, error)
    sys.exit(code)


def _run(arguments: list[str], name: str, *, debug: bool) -> tuple[int, str | None]:
    """Run one command; its exit code, and its error as one line."""
    try:
        app(arguments, prog_name="loki")
    except LokiError as error:
        if debug:
            raise
        _print_error(str(error), own=isinstance(error, RankError))
        return error.exit_code, str(error)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(bool(left.code))
        if code != INTERRUPTED:  # Typer makes this of Ctrl-C
            return code, None
        message = "interrupted" + (": run the same command again to continue" if name in CONTINUED else "")
        _print_error(message)
        return code, message
    except Exception as error:
        reason = explain(error)
        if debug or reason is None:
            raise
        _print_error(reason, own=True)
        return 2, reason
    return 0, None


def _other_than_no_gpu(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def _print_error(message: str, *, own: bool = False) -> None:
    if own:  # nobody else knows of it
        error_console.quiet = False
    error_console.print(f"[bold red]error:[/] {escape(message)}")
