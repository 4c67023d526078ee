"""Options of a command that are the fields of a settings class: their names, types, defaults and help stand there."""

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import wraps
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from loki.errors import LokiError


def with_options(leave_out: tuple[str, ...] = (), **groups: type[Any]) -> Callable[[Callable[..., Any]], Any]:
    """Let a command take the fields of settings classes as options, and give it the settings made of them.

    `epochs: float = 3.0` becomes `--epochs`, with the field's text in the class's docstring as help.

    Args:
        leave_out: fields that do not become options, as `settings.field`; they keep their defaults.
        groups: settings class of each of the command's parameters.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if name in groups:
                parameters += _options(groups[name], _left_out(leave_out, name))
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

        @wraps(command)
        def with_settings(**given: Any) -> Any:
            for name, settings in groups.items():
                taken = {
                    field.name: given.pop(field.name)
                    for field in dataclasses.fields(settings)
                    if field.name not in _left_out(leave_out, name)
                }
                given[name] = settings(**parsed(settings, taken))
            return command(**given)

        del with_settings.__wrapped__
        setattr(with_settings, "__signature__", inspect.Signature(parameters))  # noqa: B010 - mypy knows no such name
        with_settings.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_settings

    return decorate


def parsed(settings: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of fields with enumerations in place of their texts.

    Raises:
        LokiError: for a text that is none of an enumeration's values.
    """
    hints = get_type_hints(settings)
    found = dict(values)
    for name, value in values.items():
        kind = hints[name]
        if isinstance(kind, type) and issubclass(kind, Enum):
            if value not in [member.value for member in kind]:
                known = ", ".join(str(member.value) for member in kind if member.value)
                raise LokiError(f"{option_name(name)} {value} is not known: use {known}")
            found[name] = kind(value)
    return found


def option_name(field: str) -> str:
    """`batch_size` as `--batch-size`."""
    return "--" + field.replace("_", "-")


def attribute_texts(settings: type[Any]) -> dict[str, str]:
    """What the docstring of a class says of its attributes, each as a sentence."""
    section = inspect.getdoc(settings) or ""
    section = section.partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    texts = {name: " ".join(text.split()).replace("`", "") for name, text in entries}
    return {name: text[:1].upper() + text[1:] for name, text in texts.items()}


def _left_out(names: tuple[str, ...], group: str) -> set[str]:
    return {name.partition(".")[2] for name in names if name.startswith(f"{group}.")}


def _options(settings: type[Any], leave_out: set[str]) -> list[inspect.Parameter]:
    hints, texts = get_type_hints(settings), attribute_texts(settings)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default.value if isinstance(field.default, Enum) else field.default,
            annotation=Annotated[
                _simple(hints[field.name]), typer.Option(option_name(field.name), help=texts[field.name])
            ],
        )
        for field in dataclasses.fields(settings)
        if field.name not in leave_out
    ]


def _simple(kind: Any) -> Any:
    """A type that Typer knows: enumerations are texts, and so is what may be a number or a text."""
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_simple(part) for part in get_args(kind)]
        return str | None if str in parts and type(None) in parts else str if str in parts else kind
    return str if isinstance(kind, type) and issubclass(kind, Enum) else kind
