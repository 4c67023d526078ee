"""What a chat template leaves out: fields of messages that change nothing in what the model sees."""

from collections import Counter
from typing import Any

from loki.data.chat import ChatTemplate
from loki.data.messages import ASSISTANT, Message
from loki.data.records import Conversation
from loki.errors import LokiError

_TRIES = 3
_MARK = " loki7mark"
Kind = tuple[str, str, bool]  # role, field, whether the message has calls


class LeftOut:
    """Watches which fields of which messages show in the rendered text.

    A field shows if the text changes with it. It is tried on the first messages that have it, until it shows once.
    What was said or called and does not show is an error; other fields (ids, names, thinking) are counted.

    Args:
        template: the template in question.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._shows: set[Kind] = set()
        self._tried: Counter[Kind] = Counter()
        self._seen: Counter[Kind] = Counter()

    def look(self, conversation: Conversation, text: str, start: int, answer: int) -> None:
        """Look at the messages from `start` to `answer`, of which `text` is the rendering from the first one on.

        Assistants' turns before the answer are passed over: some templates leave out the thinking of past turns.
        """
        for index in range(start, answer + 1):
            message = conversation.messages[index]
            if message["role"] == ASSISTANT and index != answer:
                continue
            for field, value in message.items():
                if field == "role" or value in (None, "", [], {}):
                    continue
                kind = (message["role"], field, bool(message.get("tool_calls")))
                self._seen[kind] += 1
                if kind not in self._shows and self._tried[kind] < _TRIES:
                    self._tried[kind] += 1
                    if self._changes(conversation, text, index, answer, _changed(message, field)):
                        self._shows.add(kind)

    def counts(self) -> dict[str, int]:
        """How many messages have a field that the template leaves out, by field.

        Raises:
            LokiError: if it leaves out what messages say, or calls.
        """
        left_out: dict[str, int] = {}
        for (role, field, calling), count in self._seen.items():
            kind = (role, field, calling)
            if kind in self._shows:
                continue
            if field == "tool_calls" or (field == "content" and not calling):
                what = "the calls" if field == "tool_calls" else "what messages of"
                raise LokiError(
                    f"the tokenizer's chat template leaves out {what} "
                    f"{'of an assistant' if field == 'tool_calls' else repr(role) + ' say'}, so the model would never "
                    "see it: give a template that has a place for it with --chat-template"
                )
            name = "content beside a call" if field == "content" else field
            left_out[f"{name} of {role}"] = left_out.get(f"{name} of {role}", 0) + count
        return left_out

    def _changes(self, conversation: Conversation, text: str, index: int, answer: int, other: Message) -> bool:
        messages = conversation.messages[: answer + 1]
        messages[index] = other
        try:
            return self._template.render(messages, conversation) != text
        except LokiError:
            return True


def _changed(message: Message, field: str) -> Message:
    value: Any = message[field]
    if isinstance(value, str):
        return {**message, field: value + _MARK}
    if field == "content":
        return {**message, field: [*value, {"type": "text", "text": _MARK}]}
    return {name: item for name, item in message.items() if name != field}
