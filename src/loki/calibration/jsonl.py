"""Reading calibration prompts from a JSONL file: one JSON object per line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loki.calibration.prompts import question_prompt
from loki.calibration.records import Conversation, Record, Text
from loki.errors import LokiError
from loki.inputs import read_json_lines

_WHAT = "calibration data"
_FORMS = ("question", "messages", "prompt", "input_ids", "text")
_EXPECTED = "question with choices and subject, messages, prompt, input_ids, or text"


def read_jsonl(path: Path) -> list[Record]:
    """Read the records of a JSONL file, or of a JSON array. Empty lines are skipped, unknown fields are ignored.

    Every record has one of these forms:

    - `question` (text), `choices` (texts), `subject` (text) and optionally `answer`, which is not needed here: a
      multiple-choice question, asked with the published prompt through the chat template;
    - `messages`: a list of `{"role": ..., "content": ...}`, which goes through the chat template;
    - `prompt`: plain text to be continued as it is;
    - `input_ids`: token ids, taken as they are;
    - `text`: a document, cut into pieces that the model takes.

    Each may have `target` (token id, or a text whose first token is meant), `subject`, and `id` (by default the
    file's name and the line number).

    Raises:
        LokiError: if the file is missing, empty or not UTF-8; otherwise names the line that is not a JSON object, has
            other fields, a field of the wrong type, or an id that an earlier line has.
    """
    records: list[Record] = []
    place_of: dict[str, str] = {}
    for where, fields in read_json_lines(path, what=_WHAT):
        number = where.rpartition(" ")[2]
        try:
            record = _parse(fields, default_id=f"{path.name}:{number}")
            if record.id in place_of:
                raise LokiError(f"id {record.id!r} is also that of {place_of[record.id]}: ids must differ")
        except LokiError as error:
            raise LokiError(f"{_WHAT} {where}: {error}") from error
        place_of[record.id] = where.rpartition(", ")[2]
        records.append(record)
    if not records:
        raise LokiError(f"{_WHAT} {path} is empty: it must hold one JSON object per line")
    return records


def _parse(fields: dict[str, Any], default_id: str) -> Record:
    forms = [form for form in _FORMS if form in fields]
    if len(forms) != 1:
        raise LokiError(f"has the fields {', '.join(fields) or '(none)'}: expected one of {_EXPECTED}")
    identifier = fields.get("id", default_id)
    if not isinstance(identifier, str) and not _is_integer(identifier):
        raise LokiError(f"id is {identifier!r}: a text or a whole number is expected")
    return Record(str(identifier), _subject(fields), _PARSERS[forms[0]](fields), _target(fields))


def _question(fields: dict[str, Any]) -> Conversation:
    missing = [name for name in ("choices", "subject") if name not in fields]
    if missing:
        raise LokiError(f"has the fields {', '.join(fields)}: a question also needs {' and '.join(missing)}")
    question, choices = fields["question"], fields["choices"]
    if not isinstance(question, str):
        raise LokiError(f"question is {question!r}: a text is expected")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise LokiError(f"choices is {choices!r}: a list of texts is expected")
    return Conversation.from_user(question_prompt(_subject(fields), question, choices))


def _messages(fields: dict[str, Any]) -> Conversation:
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise LokiError(f"messages is {messages!r}: a list of messages is expected")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise LokiError(f"message {message!r}: an object with the texts role and content is expected")
    return Conversation([{"role": message["role"], "content": message["content"]} for message in messages])


def _prompt(fields: dict[str, Any]) -> str:
    prompt = fields["prompt"]
    if not isinstance(prompt, str):
        raise LokiError(f"prompt is {prompt!r}: a text is expected")
    return prompt


def _input_ids(fields: dict[str, Any]) -> list[int]:
    ids = fields["input_ids"]
    if not isinstance(ids, list) or not all(map(_is_integer, ids)):
        raise LokiError("input_ids must be a list of token ids (whole numbers)")
    return ids


def _text(fields: dict[str, Any]) -> Text:
    text = fields["text"]
    if not isinstance(text, str):
        raise LokiError(f"text is {text!r}: a text is expected")
    return Text(text)


_PARSERS: dict[str, Callable[[dict[str, Any]], Conversation | str | list[int] | Text]] = {
    "question": _question,
    "messages": _messages,
    "prompt": _prompt,
    "input_ids": _input_ids,
    "text": _text,
}


def _subject(fields: dict[str, Any]) -> str:
    subject = fields.get("subject", "")
    if not isinstance(subject, str):
        raise LokiError(f"subject is {subject!r}: a text is expected")
    return subject


def _target(fields: dict[str, Any]) -> int | str | None:
    target = fields.get("target")
    if target is None or isinstance(target, str) or _is_integer(target):
        return target
    raise LokiError(f"target is {target!r}: a token id or a text is expected")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
