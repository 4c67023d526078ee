"""What the readers of data files hand on: prompts that are not encoded yet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """Messages for the chat template.

    Attributes:
        messages: each with `role` and `content`.
    """

    messages: list[dict[str, str]]

    @classmethod
    def from_user(cls, text: str) -> "Conversation":
        """A conversation of a single user message."""
        return cls([{"role": "user", "content": text}])


@dataclass(frozen=True)
class Text:
    """A document, as long as it may be; it is cut into pieces (`loki.calibration.text_records`).

    Attributes:
        content: the text.
    """

    content: str


@dataclass(frozen=True)
class Record:
    """One prompt as the data gives it.

    Attributes:
        id: unique in its source.
        subject: what it is about; empty if the data does not say.
        prompt: a conversation (goes through the chat template), plain text (to be continued as it is), token ids
            (taken as they are), or a document.
        target: token id, or a text whose first token is meant; None for the model's own argmax.
    """

    id: str
    subject: str
    prompt: Conversation | str | list[int] | Text
    target: int | str | None = None
