"""MkDocs hook: fills `reference/cli.md` from the commands themselves, so that it cannot be out of date.

Importing the command line imports no model library.
"""

import importlib
import inspect
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from loki.cli.app import app
from loki.cli.main import COMMANDS

PAGE = "reference/cli.md"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Add the sections of all commands to the page that is meant for them."""
    return f"{markdown}\n{reference()}" if page.file.src_uri == PAGE else markdown


def command_group() -> Any:
    """The command line as Click sees it: `commands` holds every command by name."""
    for command in COMMANDS:
        importlib.import_module(f"loki.cli.{command}")
    return typer.main.get_command(app)


def reference() -> str:
    """The sections of all commands as Markdown, in the order of `loki --help`."""
    group = command_group()
    every = section("Options of every command", "", group)
    own = {name: one for name, one in group.commands.items() if name.replace("-", "_") in COMMANDS}
    return "\n\n".join([every, *(section(f"loki {name}", name, command) for name, command in own.items())])


def section(title: str, name: str, command: Any) -> str:
    """One command: its help, its usage, its arguments and options."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    lines = [f"## {title}", ""]
    if name:
        words = " ".join(map(usage, arguments))
        lines += [*help_text(command.help or ""), "", "```", f"loki {name} {words} [OPTIONS]".replace("  ", " "), "```"]
    if arguments:
        rows = [[f"`{one.name.upper()}`", cell(one.help or ""), default(one)] for one in arguments]
        lines += ["", *table(["argument", "meaning", "default"], rows)]
    if options:
        types = kinds(name)
        rows = [[names(one, types.get(one.name)), cell(one.help or ""), default(one)] for one in options]
        lines += ["", *table(["option", "meaning", "default"], rows)]
    return "\n".join(lines)


def usage(argument: Any) -> str:
    """An argument on the command line: in brackets if it may be left out, with dots if there may be several."""
    name = argument.name.upper() + " ..." * (argument.nargs != 1)
    return name if argument.required else f"[{name}]"


def help_text(text: str) -> list[str]:
    """A command's docstring; what is indented below `Example:` becomes a block of code."""
    words, _, example = inspect.cleandoc(text).replace("\b", "").partition("Example:\n")
    lines = [words.strip()]
    if example.strip():
        lines += ["", "```bash", *(line.strip() for line in example.splitlines() if line.strip()), "```"]
    return lines


def names(option: Any, kind: Any) -> str:
    """Of an option, with what it takes."""
    every = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.is_flag:
        return every
    return f"{every} {cell(option.metavar or takes(kind))}" + (", repeatable" if option.multiple else "")


def takes(kind: Any) -> str:
    """What a type is called in the usage of an option."""
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts:  # a list, or something that may be None
        return takes(parts[0])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(str(member.value) for member in kind)
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def kinds(command: str) -> dict[str, Any]:
    """The types of a command's parameters, by name."""
    for one in app.registered_commands:
        name = one.name or one.callback.__name__.replace("_", "-")
        if name == command:
            return get_type_hints(one.callback) | {
                parameter.name: get_args(parameter.annotation)[0]
                for parameter in inspect.signature(one.callback).parameters.values()
                if hasattr(parameter.annotation, "__metadata__")
            }
    return {}


def default(parameter: Any) -> str:
    """What is taken where the parameter is not given."""
    if parameter.required:
        return "required"
    value = parameter.default
    value = getattr(value, "value", value)
    if value is None or value is False or value in ("", []) or callable(value) or type(value).__name__ == "Sentinel":
        return ""
    return f"`{'true' if value is True else value}`"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def cell(text: str) -> str:
    """A text that keeps to its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
