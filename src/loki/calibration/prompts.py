"""From a prompt to token ids: the published question prompt, the chat template, and the plain text without one."""

import logging
from collections.abc import Sequence
from string import ascii_uppercase

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from loki.calibration.records import Conversation, Text
from loki.errors import LokiError, one_line

_LOGGER = logging.getLogger(__name__)


def question_prompt(subject: str, question: str, choices: Sequence[str]) -> str:
    """The prompt with which the published project asks MMLU's questions.

    For four choices it is the published text; with fewer or more, the letters named in it follow.

    Raises:
        LokiError: if there are fewer than 2 or more than 26 choices, or the question is empty.
    """
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise LokiError(f"a question with {len(choices)} choices: give 2 to {len(ascii_uppercase)} of them")
    if not question.strip():
        raise LokiError("the question is empty: give it a text")
    letters = ascii_uppercase[: len(choices)]
    return "\n".join(
        [
            f"There is a single choice question about {subject.replace('_', ' ')}. "
            f"Answer the question by replying {', '.join(letters[:-1])} or {letters[-1]}.",
            question,
            *(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)),
            "Answer:",
        ]
    )


class PromptEncoder:
    """Encodes prompts with a tokenizer and its chat template.

    A conversation becomes the template's text up to where the assistant answers; if its last message is the
    assistant's own, up to the end of that message, so that the model goes on with it. Without a chat template its
    messages are joined by line breaks and encoded as plain text; the log says so once.

    Plain text is encoded with the special tokens the tokenizer adds by itself. Token ids are left alone.

    Args:
        tokenizer: of the model to be analysed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._said_plain = False

    def encode(self, prompt: Conversation | str | list[int] | Text) -> list[int]:
        """Token ids of the prompt, without padding.

        Raises:
            LokiError: if the prompt is empty, or the chat template refuses the messages.
        """
        if isinstance(prompt, Conversation):
            if not any(message["content"].strip() for message in prompt.messages):
                raise LokiError("the prompt is empty: every message's content is")
            return self._encode_conversation(prompt)
        if isinstance(prompt, Text):
            return self._encode_text(prompt.content)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise LokiError("the prompt is empty: give it a text")
            return self._encode_text(prompt)
        if not prompt:
            raise LokiError("the prompt is empty: input_ids holds no token id")
        return prompt

    def _encode_conversation(self, conversation: Conversation) -> list[int]:
        if not self._tokenizer.chat_template:
            self._say_plain()
            return self._encode_text("\n".join(message["content"] for message in conversation.messages))
        answered = conversation.messages[-1]["role"] == "assistant"
        try:
            # With tokenize=True no special tokens are added to those in the template.
            encoded = self._tokenizer.apply_chat_template(
                conversation.messages,
                add_generation_prompt=not answered,
                continue_final_message=answered,
                tokenize=True,
                return_dict=True,
            )
        except (TemplateError, ValueError) as error:
            raise LokiError(f"the tokenizer's chat template refuses the messages ({one_line(error)})") from error
        return list(encoded["input_ids"])

    def _encode_text(self, text: str) -> list[int]:
        ids = list(self._tokenizer(text)["input_ids"])
        bos = self._tokenizer.bos_token_id
        # A text that spells out the beginning-of-sequence token gets it a second time from the tokenizer.
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def _say_plain(self) -> None:
        if not self._said_plain:
            self._said_plain = True
            _LOGGER.warning("The tokenizer has no chat template: prompts are given to the model as plain text")
