"""Typed schemas of what comes from outside, with the first thing that is wrong as one line."""

from typing import Any, TypeVar

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


def shown_text(text: str, limit: int = 200) -> str:
    """A text of a library in one line of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
