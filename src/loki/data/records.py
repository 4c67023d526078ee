"""Records of every known form, as what is to be trained on: a conversation, a text with its prompt, or token ids."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from loki.data.messages import ASSISTANT, Message, Tool, read_messages, read_tools, switched_off
from loki.data.schema import TEXT, TOKENS, check
from loki.errors import LokiError

FORMS = (
    '"messages", "conversations", "prompt" and "completion", "instruction" and "output", "text", '
    'or "input_ids" and "labels"'
)
SWITCHED_OFF = "switched off by weight, train or loss"
# Stanford's prompts, for models without a chat template.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Conversation:
    """Messages of which some answers are trained.

    Attributes:
        messages: for the chat template.
        tools: for the chat template.
        trained: indices of the assistant's messages to be trained; each becomes an example.
        template_options: further arguments of the chat template.
    """

    messages: list[Message]
    tools: list[Tool]
    trained: list[int]
    template_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """Plain text.

    Attributes:
        prompt: no loss is taken on it; empty if loss is taken on all.
        completion: what is trained, up to and with the end-of-text token.
    """

    prompt: str
    completion: str


@dataclass(frozen=True)
class Tokens:
    """An example that is tokenised already.

    Attributes:
        input_ids: token ids.
        trained: of each, whether loss is taken on it.
    """

    input_ids: list[int]
    trained: list[bool]


Item = Conversation | Text | Tokens


@dataclass(frozen=True)
class Parsed:
    """What a record holds.

    Attributes:
        item: what is trained on; None if nothing can be.
        dropped: what is not trained, by reason: the whole record, or some of its answers.
        unused: fields that say nothing about training, such as an id.
    """

    item: Item | None
    dropped: dict[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def parse_record(record: dict[str, Any], *, chat_template: bool) -> Parsed:
    """What is to be trained on in a record.

    Args:
        record: as it was read.
        chat_template: whether the tokenizer has a chat template, which conversations need; Alpaca records become
            conversations then, and texts with Stanford's prompt otherwise.

    Raises:
        LokiError: names the field that is wrong or missing.
    """
    fields = dict(record)
    off = [switched_off(fields.pop(name), name) for name in ("weight", "train", "loss") if name in fields]
    if "messages" in fields or "conversations" in fields:
        parsed = _conversation(fields, "messages" if "messages" in fields else "conversations")
    elif "input_ids" in fields:
        parsed = _tokens(fields)
    elif "prompt" in fields and "completion" in fields:
        parsed = _completion(fields)
    elif "instruction" in fields and "output" in fields:
        parsed = _alpaca(fields, chat_template=chat_template)
    elif "text" in fields:
        text = _text(fields, "text")
        parsed = _usable(Text("", text), "with an empty text" if not text else "")
    else:
        raise LokiError(f"has the fields {', '.join(map(ascii, record)) or '(none)'}: expected {FORMS}")
    if any(off):
        return Parsed(None, {SWITCHED_OFF: 1}, tuple(fields))
    if isinstance(parsed.item, Conversation) and not chat_template:
        raise LokiError(
            "is a conversation, but the tokenizer has no chat template: give it one, or `hermes`, with "
            '--chat-template, or write the records as "prompt" and "completion"'
        )
    return Parsed(parsed.item, parsed.dropped, tuple(fields))


def _usable(item: Item, reason: str) -> Parsed:
    return Parsed(None, {reason: 1}) if reason else Parsed(item)


def _text(fields: dict[str, Any], name: str, default: str | None = None) -> str:
    value = fields.pop(name, None)
    if value is None and default is not None:
        return default
    check(TEXT, value, name)
    return str(value)


def _conversation(fields: dict[str, Any], name: str) -> Parsed:
    messages, switches = read_messages(fields.pop(name), name)
    return _answers([], messages, switches, fields, wrap=name == "conversations")


def _completion(fields: dict[str, Any]) -> Parsed:
    prompt, completion = fields.pop("prompt"), fields.pop("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        context, _ = read_messages(prompt, "prompt")
        messages, switches = read_messages(completion, "completion")
        return _answers(context, messages, switches, fields, wrap=False)
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise LokiError('"prompt" and "completion" must be texts, or both lists of messages')
    return _usable(Text(prompt, completion), "" if completion else "with an empty completion")


def _answers(
    context: list[Message], messages: list[Message], switches: list[bool], fields: dict[str, Any], *, wrap: bool
) -> Parsed:
    """The conversation of which the assistant's turns in `messages` are trained."""
    system = _text(fields, "system", "")
    if system:
        if any(message["role"] == "system" for message in [*context, *messages]):
            raise LokiError('has a system message in its field "system" and among its messages: leave out one')
        context = [{"role": "system", "content": system}, *context]
    tools = read_tools(fields.pop("tools", None), "tools", wrap=wrap)
    tools += read_tools(fields.pop("functions", None), "functions", wrap=True)
    options = fields.pop("chat_template_kwargs", None) or {}
    if not isinstance(options, dict):
        raise LokiError(f"chat_template_kwargs is {options!a}: an object is expected")
    trained: list[int] = []
    dropped: Counter[str] = Counter()
    for index, (message, switch) in enumerate(zip(messages, switches, strict=True), start=len(context)):
        if message["role"] != ASSISTANT:
            continue
        if reason := _why_not(message, switch, index):
            dropped[reason] += 1
        else:
            trained.append(index)
    if not trained:
        return Parsed(None, dict(dropped) or {"without an assistant's answer": 1})
    return Parsed(Conversation([*context, *messages], tools, trained, options), dict(dropped))


def _why_not(message: Message, switch: bool, index: int) -> str:
    """Why an assistant's message is not trained; empty if it is."""
    if not switch:
        return SWITCHED_OFF
    if not _says_something(message):
        return "empty answers"
    return "" if index else "answers with nothing before them"


def _says_something(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return bool(content or message.get("tool_calls"))


def _alpaca(fields: dict[str, Any], *, chat_template: bool) -> Parsed:
    instruction, output = _text(fields, "instruction"), _text(fields, "output")
    given, system = _text(fields, "input", ""), _text(fields, "system", "")
    history = fields.pop("history", None) or []
    pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    if not pairs:
        raise LokiError(f"history is {ascii(history)[:60]}: a list of pairs of texts is expected")
    if not output:
        return Parsed(None, {"with an empty output": 1})
    if not chat_template:
        if system or history:
            raise LokiError("system and history need a chat template: give one with --chat-template")
        form = _ALPACA_WITH_INPUT if given else _ALPACA
        return Parsed(Text(form.format(instruction=instruction, input=given), output))
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for question, answer in history:
        messages += [{"role": "user", "content": question}, {"role": ASSISTANT, "content": answer}]
    messages += [
        {"role": "user", "content": f"{instruction}\n{given}" if given else instruction},
        {"role": ASSISTANT, "content": output},
    ]
    answers = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT and message["content"]]
    return Parsed(Conversation(messages, [], answers))


def _tokens(fields: dict[str, Any]) -> Parsed:
    names = ("input_ids", "labels", "attention_mask")
    given = {name: fields.pop(name) for name in names if name in fields}
    check(TOKENS, given, "")
    ids, labels = given["input_ids"], given["labels"]
    if len(labels) != len(ids):
        raise LokiError(f"input_ids has {len(ids)} tokens and labels has {len(labels)}: they must be as many")
    for index, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, -100):
            raise LokiError(f"labels[{index}] is {label}: the token id {token} is expected, or -100 for no loss")
    trained = [label != -100 for label in labels]
    return _usable(Tokens(ids, trained), "" if any(trained[1:]) else "without a trained token")
