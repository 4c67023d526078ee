"""What messages and tools must look like. Other fields are let through: a chat template may use them."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from loki.errors import LokiError
from loki.inputs import Strict, shown

Name = Annotated[str, Field(min_length=1)]
Switch = bool | Literal[0, 1] | None


class ContentPart(Strict):
    """A part of a message's content; pictures and sounds are not for a language model alone."""

    type: Literal["text"]
    text: str


class Function(Strict):
    """What an assistant calls; `arguments` as an object, or as JSON in a text."""

    name: Name
    arguments: dict[str, Any] | str | None = None


class ToolCall(Strict):
    """A call, in the style of OpenAI."""

    id: str | int | None = None
    type: str | None = None
    function: Function


class Message(Strict):
    """A message, in the style of OpenAI."""

    role: Name
    content: str | list[ContentPart] | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None


class ShareGptMessage(Strict):
    """A message, in the style of ShareGPT."""

    from_: Name = Field(alias="from")
    value: str


class ToolFunction(Strict):
    """A function that may be called, with a JSON schema of its parameters."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Strict):
    """A function in OpenAI's envelope."""

    type: str | None = None
    function: ToolFunction


class TokenRecord(Strict):
    """An example that is tokenised already; labels are -100 where no loss is taken."""

    input_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    labels: list[int]
    attention_mask: list[Literal[1]] | None = None


MESSAGES = TypeAdapter(list[Message])
SHAREGPT = TypeAdapter(list[ShareGptMessage])
TOOLS = TypeAdapter(list[Tool])
BARE_TOOLS = TypeAdapter(list[ToolFunction])
CALLS = TypeAdapter(list[Function])
TEXT = TypeAdapter(Annotated[str, Field(strict=True)])
TOKENS = TypeAdapter(TokenRecord)


def check(schema: TypeAdapter[Any], value: Any, name: str) -> None:
    """Check a value against a schema.

    Args:
        schema: one of this module's.
        value: what was read.
        name: of the field that holds it.

    Raises:
        LokiError: names the field that is wrong, down to the last, its value and what is expected.
    """
    try:
        schema.validate_python(value)
    except ValidationError as error:
        found = max(error.errors(include_url=False), key=lambda problem: len(problem["loc"]))
        place = _place(name, value, found["loc"])
        got = "" if found["type"] == "missing" else f" is {shown(found['input'])}"
        raise LokiError(f"{place}{got}: {found['msg'][0].lower()}{found['msg'][1:]}") from error


def _place(name: str, value: Any, location: tuple[int | str, ...]) -> str:
    """The path to a value. Pydantic's own also names the alternatives that it tried; they are not fields."""
    for index, key in enumerate(location):
        if isinstance(key, int) and isinstance(value, list):
            name, value = f"{name}[{key}]", value[key] if key < len(value) else None
        elif isinstance(value, dict) and (key in value or index == len(location) - 1):
            name, value = (f"{name}.{key}" if name else str(key)), value.get(key)
    return name
