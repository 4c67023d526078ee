"""Options that every command has: they may stand anywhere on the line."""

from dataclasses import dataclass
from pathlib import Path

from loki.errors import LokiError

_FLAGS = {"--debug": "debug", "--quiet": "quiet", "--json": "as_json", "--version": "version"}
_LOG_FILE = "--log-file"


@dataclass(frozen=True)
class GlobalOptions:
    """Options of every command.

    Attributes:
        debug: show the traceback of an error.
        quiet: print nothing but errors and warnings.
        as_json: end with one JSON object, alone on standard output.
        log_file: file that all lines are added to as well.
        version: print the version instead of running a command.
    """

    debug: bool = False
    quiet: bool = False
    as_json: bool = False
    log_file: Path | None = None
    version: bool = False


def take_global_options(words: list[str]) -> tuple[list[str], GlobalOptions]:
    """Split the words of a command line into a command's own and the options that every command has.

    Raises:
        LokiError: if `--log-file` names no file.
    """
    own: list[str] = []
    flags: dict[str, bool] = {}
    log_file: Path | None = None
    rest = iter(words)
    for word in rest:
        if word in _FLAGS:
            flags[_FLAGS[word]] = True
        elif word == _LOG_FILE or word.startswith(f"{_LOG_FILE}="):
            name = word.partition("=")[2] or next(rest, "")
            if not name or name.startswith("-"):
                raise LokiError(f"{_LOG_FILE} needs the name of a file")
            log_file = Path(name)
        else:
            own.append(word)
    return own, GlobalOptions(**flags, log_file=log_file)
