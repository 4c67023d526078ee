"""Messages in the styles of OpenAI and ShareGPT, made into what a chat template takes."""

import json
from typing import Any

from loki.data.schema import BARE_TOOLS, CALLS, MESSAGES, SHAREGPT, TEXT, TOOLS, check
from loki.errors import LokiError
from loki.inputs.json_text import parse_json

Message = dict[str, Any]
Tool = dict[str, Any]

ASSISTANT = "assistant"
# What ShareGPT calls the roles.
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "function_call": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
}
ROLES = ("system", "developer", "user", ASSISTANT, "tool", "function", "ipython", "observation")
# On a message, whether loss is taken on it; and what says that it is.
_SWITCHES = {
    **dict.fromkeys(("weight", "loss_weight", "train", "training", "trainable", "loss"), True),
    "masked": False,
}


def read_messages(value: Any, name: str) -> tuple[list[Message], list[bool]]:
    """A list of messages, in either style.

    Messages of OpenAI's style are left as they are, but for the older `function_call`, which becomes `tool_calls`.

    Returns:
        The messages, and of each whether loss may be taken on it: loss switches (`weight`, `train`, `masked`, ...)
        are taken out.

    Raises:
        LokiError: names the field that is wrong, or the role that is not known.
    """
    sharegpt = isinstance(value, list) and any(isinstance(message, dict) and "from" in message for message in value)
    check(SHAREGPT if sharegpt else MESSAGES, value, name)
    messages, trained = [], []
    for index, given in enumerate(value):
        place = f"{name}[{index}]"
        message = _from_sharegpt(given, place) if sharegpt else _from_openai(given)
        if message["role"] not in ROLES:
            shown = given["from" if sharegpt else "role"]
            raise LokiError(f"{place}: unknown role {shown!a}: use one of {', '.join([*ROLES, *_SHAREGPT_ROLES])}")
        if message["role"] != ASSISTANT and message.get("tool_calls"):
            raise LokiError(f"{place}: a message of {message['role']} has tool_calls, which only an assistant makes")
        trained.append(_switched_on(message, place))
        messages.append(message)
    return messages, trained


def read_tools(value: Any, name: str, *, wrap: bool) -> list[Tool]:
    """Tools: a list of OpenAI's `{"type": "function", "function": {...}}`, of bare functions, or either as JSON text.

    Args:
        value: the list, or a text that holds it; None for no tools.
        name: of its field.
        wrap: put bare functions into OpenAI's envelope.

    Raises:
        LokiError: names the field that is wrong.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.strip() else []
        except LokiError as error:
            raise LokiError(f"{name} is a text that is {error}") from error
    if not value:
        return []
    bare = isinstance(value, list) and not any(isinstance(tool, dict) and "function" in tool for tool in value)
    check(BARE_TOOLS if bare else TOOLS, value, name)
    return wrapped(value) if bare and wrap else list(value)


def wrapped(tools: list[Tool]) -> list[Tool]:
    """The tools, each in OpenAI's envelope."""
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def tool_name(tool: Tool) -> str:
    """The name of the function."""
    return str(tool.get("function", tool)["name"])


def switched_off(value: Any, name: str, *, on: bool = True) -> bool:
    """Whether a loss switch forbids the loss.

    Args:
        value: true, false, 0 or 1; None for no switch.
        name: of the field.
        on: the value that means that loss is taken.

    Raises:
        LokiError: if it is something else, such as a weight of 0.5.
    """
    if value is None:
        return False
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise LokiError(f"{name} is {value!a}: loss is taken (1, true) or not (0, false), nothing between")
    return bool(value) is not on


def _switched_on(message: Message, place: str) -> bool:
    off = [
        switched_off(message.pop(field), f"{place}.{field}", on=on)
        for field, on in _SWITCHES.items()
        if field in message
    ]
    return not any(off)


def _from_openai(given: Message) -> Message:
    message = {**given, "role": _SHAREGPT_ROLES.get(given["role"], given["role"])}
    call = message.pop("function_call", None)
    if call is not None and not message.get("tool_calls"):
        message["tool_calls"] = [{"type": "function", "function": call}]
    if given["role"] == "function_call" and isinstance(message.get("content"), str):
        message |= _called(message["content"])
    return message


def _from_sharegpt(given: Message, place: str) -> Message:
    check(TEXT, given["value"], f"{place}.value")
    message = {name: item for name, item in given.items() if name not in ("from", "value")}
    message["role"] = _SHAREGPT_ROLES.get(given["from"], given["from"])
    return message | (_called(given["value"]) if given["from"] == "function_call" else {"content": given["value"]})


def _called(text: str) -> Message:
    """Content and calls of a ShareGPT `function_call`: JSON of one call or several; any other text stays a text."""
    try:
        value = parse_json(text)
        calls = value if isinstance(value, list) else [value]
        check(CALLS, calls, "function_call")
    except LokiError:
        return {"content": text}
    if not calls:
        return {"content": text}
    return {"content": "", "tool_calls": [{"type": "function", "function": call} for call in calls]}


def parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object, where they are a text that holds one; else the call as it is."""
    arguments = call["function"].get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except ValueError:
        return call
    return {**call, "function": {**call["function"], "arguments": value}} if isinstance(value, dict) else call
