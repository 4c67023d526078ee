"""Rendering a conversation with the tokenizer's chat template, whole: tools, calls, results, thinking, every field."""

import json
import operator
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

from transformers import PreTrainedTokenizerBase

from loki.data.messages import Message, parsed_arguments, tool_name, wrapped
from loki.data.records import Conversation
from loki.errors import LokiError, one_line

# What a role may be called for a template that does not know it.
OTHER_NAMES = {"developer": "system", "function": "tool", "observation": "tool", "ipython": "tool"}
_PROBE = "loki7probe"


class ChatTemplate:
    """A tokenizer's chat template, given every conversation in the shape that it can take.

    A conversation goes to the template as it is. Where the template cannot take that, it gets the same content in
    another shape that it can: contents in parts as one text or the reverse, `null` beside a call as an empty text,
    arguments in a text as an object, bare tools in OpenAI's envelope, roles by their other names.

    Args:
        tokenizer: with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._recent: deque[tuple[tuple[Any, ...], bool, str]] = deque(
            maxlen=3
        )  # the same is asked for several times in a row
        self.renamed: Counter[str] = Counter()
        self._takes_role: dict[str, bool] = {}
        self._in_parts = not self._takes_texts()

    def render(
        self, messages: list[Message], conversation: Conversation, *, prompt: bool = False, tools: bool = True
    ) -> str:
        """The text that the template makes of messages.

        Args:
            messages: some of the conversation's.
            conversation: whose tools and options are used.
            prompt: end with what an answer follows.
            tools: whether to give it the conversation's tools.

        Raises:
            LokiError: if the template refuses them.
        """
        given_tools = conversation.tools if tools and conversation.tools else None
        given = (*messages, given_tools, conversation.template_options)
        for known, known_prompt, text in self._recent:
            # By identity: 1, 1.0 and True are equal, and a template shows them apart.
            if known_prompt == prompt and len(known) == len(given) and all(map(operator.is_, known, given)):
                return text
        try:
            text = str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tools=given_tools,
                    add_generation_prompt=prompt,
                    tokenize=False,
                    **conversation.template_options,
                )
            )
        except Exception as error:  # a template is a program: whatever it does wrong is an error of the template
            raise LokiError(f"the tokenizer's chat template refuses this conversation ({one_line(error)})") from error
        self._recent.append((given, prompt, text))
        return text

    def fitted(self, conversation: Conversation) -> Conversation:
        """The conversation in the shape that the template takes.

        Raises:
            LokiError: if the template refuses the conversation in every shape, or has no place for its tools.
        """
        given = replace(conversation, messages=[self._content(message) for message in conversation.messages])
        given = self._accepted(self._with_roles(given))
        given = self._with_arguments(self._with_empty_contents(given))
        return self._with_tools(given) if given.tools else given

    def _accepted(self, conversation: Conversation) -> Conversation:
        """The conversation as it is if the template takes it, else the first other shape that it takes."""
        refused: LokiError | None = None
        changes = [self._emptied, _with_parsed_arguments, _with_wrapped_tools]
        for count in range(len(changes) + 1):
            for chosen in combinations(changes, count):
                shape = conversation
                for change in chosen:
                    shape = change(shape)
                if chosen and shape == conversation:
                    continue
                try:
                    self.render(shape.messages, shape)
                except LokiError as error:
                    refused = refused or error
                else:
                    return shape
        raise refused or LokiError("the chat template refuses this conversation")

    def _emptied(self, conversation: Conversation) -> Conversation:
        empty = [] if self._in_parts else ""
        return _mapped(conversation, lambda m: {**m, "content": empty} if m.get("content") is None else m)

    def _takes_texts(self) -> bool:
        """Whether contents may be texts; some templates take lists of parts only."""
        try:
            text = self._tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False)
        except Exception:
            return True  # the conversations' own error is said then
        return _PROBE in text

    def _content(self, message: Message) -> Message:
        content = message.get("content")
        if self._in_parts and isinstance(content, str):
            return {**message, "content": [{"type": "text", "text": content}]}
        if not self._in_parts and isinstance(content, list):
            return {**message, "content": "".join(part["text"] for part in content)}
        return message

    def _with_roles(self, conversation: Conversation) -> Conversation:
        for role in {message["role"] for message in conversation.messages} & OTHER_NAMES.keys():
            if role not in self._takes_role:
                self._takes_role[role] = self._knows_role(conversation, role)
            if not self._takes_role[role]:
                conversation = _renamed(conversation, role)
                self.renamed[role] += 1
        return conversation

    def _knows_role(self, conversation: Conversation, role: str) -> bool:
        """Whether the template shows what a role says; if it shows the other name's no better, it stays as it is."""

        def shows(given: Conversation, name: str) -> bool:
            probed = [{**m, "content": _PROBE} if m["role"] == name else m for m in given.messages]
            try:
                return _PROBE in self.render(probed, given)
            except LokiError:
                return False

        return shows(conversation, role) or not shows(_renamed(conversation, role), OTHER_NAMES[role])

    def _with_empty_contents(self, conversation: Conversation) -> Conversation:
        """Where the template prints a content that is null or absent beside a call: an empty text."""
        if all(message.get("content") is not None for message in conversation.messages):
            return conversation
        if "None" not in self.render(conversation.messages, conversation):
            return conversation
        return self._better(
            conversation,
            self._emptied(conversation),
            lambda text, other: text.count("None") > other.count("None"),
        )

    def _with_arguments(self, conversation: Conversation) -> Conversation:
        """Where the template would quote arguments that are JSON in a text once more: arguments as an object."""
        texts = [
            call["function"]["arguments"]
            for message in conversation.messages
            for call in message.get("tool_calls") or []
            if isinstance(call["function"].get("arguments"), str)
        ]
        if not texts:
            return conversation
        quoted = [json.dumps(text, ensure_ascii=False) for text in texts]
        return self._better(
            conversation,
            _with_parsed_arguments(conversation),
            lambda text, _: any(q in text or t not in text for q, t in zip(quoted, texts, strict=True)),
        )

    def _with_tools(self, conversation: Conversation) -> Conversation:
        names = list(map(tool_name, conversation.tools))

        def complete(text: str) -> bool:
            return all(name in text for name in names)

        given = self._better(
            conversation,
            _with_wrapped_tools(conversation),
            lambda text, other: not complete(text) and complete(other),
        )
        text = self.render(given.messages, given)
        without = self.render(given.messages, given, tools=False)
        if text == without or not complete(text):
            raise LokiError(
                "has tools, and the tokenizer's chat template has no place for them, so the model would never see "
                "them: give a template that has, or `hermes`, with --chat-template"
            )
        return given

    def _better(
        self, conversation: Conversation, other: Conversation, worse: Callable[[str, str], bool]
    ) -> Conversation:
        """`other` if the template takes it and does worse with the given one, else the given one."""
        if other == conversation:
            return conversation
        text = self.render(conversation.messages, conversation)
        try:
            return other if worse(text, self.render(other.messages, other)) else conversation
        except LokiError:
            return conversation


def _mapped(conversation: Conversation, change: Callable[[Message], Message]) -> Conversation:
    return replace(conversation, messages=[change(message) for message in conversation.messages])


def _renamed(conversation: Conversation, role: str) -> Conversation:
    return _mapped(conversation, lambda m: {**m, "role": OTHER_NAMES[role]} if m["role"] == role else m)


def _with_parsed_arguments(conversation: Conversation) -> Conversation:
    return _mapped(
        conversation,
        lambda m: {**m, "tool_calls": list(map(parsed_arguments, m["tool_calls"]))} if m.get("tool_calls") else m,
    )


def _with_wrapped_tools(conversation: Conversation) -> Conversation:
    return replace(conversation, tools=wrapped(conversation.tools))
