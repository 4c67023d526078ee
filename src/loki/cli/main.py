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
from loki.cli.output import end_with_json, error_console, open_closed_streams, speaking, unsaid
from loki.cli.stopping import INTERRUPTED, TERMINATED, Stopping, stopping
from loki.errors import LokiError, RankError

_LONGEST = 1200  # characters of an error's line
CONTINUED = ("analyse", "sample", "moments", "tune", "train", "run")  # the commands that go on where they stopped
COMMANDS = (
    "analyse",
    "sample",
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
    open_closed_streams()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of kernels it could use
    logging.getLogger("DeepSpeed").addFilter(_other_than_no_gpu)  # it writes to standard output, among our lines
    with stopping() as stop:
        try:
            code = _main(stop)
        except KeyboardInterrupt:  # before or after the command
            code = INTERRUPTED if stop.code is None else stop.code
            _print_error(_stopped(code, ""))
    sys.exit(code)


def _main(stop: Stopping) -> int:
    """Run the command that the arguments of this process name; its exit code."""
    for command in COMMANDS:
        importlib.import_module(f"loki.cli.{command}")
    with ExitStack() as stack:
        try:
            arguments, common = take_global_options(sys.argv[1:])
            stack.enter_context(speaking(quiet=common.quiet, as_json=common.as_json, log_file=common.log_file))
        except LokiError as wrong:
            _print_error(str(wrong))
            return wrong.exit_code
        if common.version:
            print(f"loki {version('loki-llm')}")
            return 0
        name = next((word for word in arguments if not word.startswith("-")), "")
        code, error = _run(arguments, name, stop, debug=common.debug)
        end_with_json(name, code, error)
        if (lost := unsaid()) and not code:
            _print_error(lost)
            return 2
    return code


def _run(arguments: list[str], name: str, stop: Stopping, *, debug: bool) -> tuple[int, str | None]:
    """Run one command; its exit code, and its error as one line."""
    try:
        code = int(app(arguments, prog_name="loki", standalone_mode=False) or 0)
    except LokiError as error:
        if stop.code is None:
            if debug:
                raise
            _print_error(str(error), own=isinstance(error, RankError))
            return error.exit_code, str(error)
        code = stop.code
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(bool(left.code))
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed
            return 2, None
        if stop.code is None:
            reason = _of_parser(error, name) or explain(error)
            if reason is None or (debug and not _of_parser(error, name)):
                raise
            _print_error(reason, own=True)
            return 2, reason
        code = stop.code  # whatever a library has made of it
    if stop.code is not None and code:
        code = stop.code
    if code not in (INTERRUPTED, TERMINATED):  # Typer makes the one of Ctrl-C
        return code, None
    message = _stopped(code, name)
    _print_error(message)
    return code, message


def _stopped(code: int, name: str) -> str:
    """What to say when a command was stopped."""
    how = "interrupted" if code == INTERRUPTED else "stopped by SIGTERM"
    return how + (": run the same command again to continue" if name in CONTINUED else "")


def _of_parser(error: Exception, name: str) -> str | None:
    """What the parser of the command line says of wrong words, in one line; None for other errors.

    Told by what it can do: Typer's releases have the class from different places.
    """
    say_it = getattr(error, "format_message", None)
    return f"{say_it().rstrip('.')}: see loki {f'{name} ' if name in _names() else ''}--help" if say_it else None


def _names() -> list[str]:
    return [command.replace("_", "-") for command in COMMANDS]


def _other_than_no_gpu(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def _print_error(message: str, *, own: bool = False) -> None:
    if own:  # nobody else knows of it
        error_console.quiet = False
    # One line, whatever a path or a library's message holds.
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message)
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    error_console.print(f"[bold red]error:[/] {escape(line)}")
