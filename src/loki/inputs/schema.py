"""Typed schemas of what comes from outside, with the first thing that is wrong as one line."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from loki.errors import LokiError
from loki.inputs.reading import FETCH_AGAIN, shown

T = TypeVar("T")


class Strict(BaseModel):
    """Base of schemas: no value is converted (a text is not a number), and fields that are not declared are kept."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=())


def checked(schema: type[T] | TypeAdapter[T], value: Any, origin: str, *, advice: str = FETCH_AGAIN) -> T:
    """Check a value against a schema.

    Args:
        schema: a subclass of `Strict`, or any type that pydantic knows.
        value: what was read.
        origin: what holds it, for the message: "adapter configuration a/adapter_config.json".
        advice: what to do about it.

    Returns:
        The value as the schema's type.

    Raises:
        LokiError: names the first field that is wrong, its value, and what is expected.
    """
    adapter: TypeAdapter[T] = schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(shown(part, 40).strip("'") for part in problem["loc"])
        expected = problem["msg"][:1].lower() + problem["msg"][1:]
        if problem["type"] == "missing":
            raise LokiError(f"{origin} has no {field}: {advice}") from error
        got = f"{field} is {shown(problem['input'])}" if field else f"holds {shown(problem['input'])}"
        raise LokiError(f"{origin}: {got}: {shown_text(expected)}: {advice}") from error


def check_fields(kind: type[Any], values: Mapping[str, Any], origin: str, *, advice: str) -> None:
    """Check values for the fields of a dataclass against its annotations; enumerations and paths may be given as text.

    Args:
        kind: the dataclass. Fields that are dataclasses themselves are not looked at.
        values: by the names of its fields.
        origin: what holds them, for the message.
        advice: what to do about it.

    Raises:
        LokiError: names the first field that is wrong, its value, and what is expected.
    """
    hints = get_type_hints(kind)
    for own in fields(kind):
        if own.name in values and not is_dataclass(hints[own.name]):
            value, hint = values[own.name], hints[own.name]
            listed = any(isinstance(part, type) and issubclass(part, Enum | Path) for part in (hint, *get_args(hint)))
            config = ConfigDict(strict=not (listed and isinstance(value, str)))
            checked(TypeAdapter(hint, config=config), value, f"{origin}: {own.name}", advice=advice)


def shown_text(text: str, limit: int = 200) -> str:
    """A text of a library in one line of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
