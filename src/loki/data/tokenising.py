"""From records to token ids, with the exact place where an answer begins."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from loki.data.chat import OTHER_NAMES, ChatTemplate
from loki.data.examples import TrainingRecords
from loki.data.left_out import LeftOut
from loki.data.records import Conversation, Text, Tokens
from loki.errors import LokiError
from loki.progress import tracked

_BATCH = 512
_HEADER = 64  # characters that a template may put between a prompt and what the answer says


@dataclass(frozen=True)
class Example:
    """Token ids, of which those from `begin` on are trained.

    Attributes:
        input_ids: token ids.
        trained: of each, 1 if loss is taken on it, else 0.
        origin: where its record stands.
        source: index of its source.
        splittable: whether loss is taken on all of it, so that it may be split instead of cut.
    """

    input_ids: list[int]
    trained: list[int]
    origin: str
    source: int
    splittable: bool = False


@dataclass(frozen=True)
class _Rendered:
    """A text, the part of it before the answer, and where it comes from."""

    text: str
    prompt: str
    origin: str
    source: int
    template: bool


def tokenise(records: TrainingRecords, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Example], dict[str, int]]:
    """Examples in the order of their records; of a conversation, one for each trained answer.

    A conversation's tokens are those of `apply_chat_template` on its messages up to the answer, and the answer begins
    where the same without it, with the generation prompt, ends. Texts get the tokens that the tokenizer puts around
    one, and its end-of-text token.

    Args:
        records: what to train on.
        tokenizer: the model's.

    Returns:
        The examples, and how often something was not quite as written, by what it was.

    Raises:
        LokiError: if the chat template refuses a conversation or leaves out what it holds, with its place.
    """
    notes: Counter[str] = Counter()
    template = ChatTemplate(tokenizer) if records.conversations else None
    left_out = LeftOut(template) if template else None
    rendered = _render(records, template, left_out, notes)
    examples: list[Example] = []
    while batch := list(islice(rendered, _BATCH)):
        examples += _encode(batch, tokenizer, notes)
    if template and left_out:
        try:
            counts = left_out.counts()
        except LokiError as error:
            raise LokiError(f"{records.what}: {error}") from error
        notes.update({f"{name}, which the chat template leaves out": count for name, count in counts.items()})
        notes.update(
            {
                f"conversations with messages of {role}, given as {OTHER_NAMES[role]}": n
                for role, n in template.renamed.items()
            }
        )
    return examples, dict(notes)


def _render(
    records: TrainingRecords, template: ChatTemplate | None, left_out: LeftOut | None, notes: Counter[str]
) -> Iterator[_Rendered | Example]:
    items = tracked(records.items, f"tokenising the {records.what}")
    for item, origin, source in zip(items, records.origins, records.sources, strict=True):
        if isinstance(item, Tokens):
            yield Example(item.input_ids, list(map(int, item.trained)), origin, source)
        elif isinstance(item, Text):
            yield _Rendered(item.prompt + item.completion, item.prompt, origin, source, template=False)
        elif template and left_out:
            try:
                conversation = template.fitted(item)
                start = 0
                for answer in conversation.trained:
                    text, prompt = _answer(template, conversation, answer, notes)
                    left_out.look(conversation, text, start, answer)
                    start = answer + 1
                    yield _Rendered(text, prompt, origin, source, template=True)
            except LokiError as error:
                raise LokiError(f"{records.what} {origin}: {error}") from error


def _answer(template: ChatTemplate, conversation: Conversation, answer: int, notes: Counter[str]) -> tuple[str, str]:
    """The conversation up to an answer as a text, and the part of it before the answer."""
    context, upto = conversation.messages[:answer], conversation.messages[: answer + 1]
    text = template.render(upto, conversation)
    prompt = template.render(context, conversation, prompt=True)
    if text.startswith(prompt):
        return text, prompt
    before = template.render(context, conversation)
    if text.startswith(before):
        # What asks for the answer is not what stands before it: thinking that is opened, for instance.
        notes["answers that the chat template does not begin as it asks for them"] += 1
        return text, text[: max(_common(text, prompt), len(before))]
    # With the answer, the template changes what came before: the answer follows what the model will be asked with.
    notes["answers before which the chat template shows other text than when it asks for them"] += 1
    begin = _begin(template, conversation, text, answer)
    # Back to where what stands before the answer is most like the end of the prompt.
    begin = max(range(begin, max(begin - _HEADER, 0) - 1, -1), key=lambda end: _common(text[:end][::-1], prompt[::-1]))
    return prompt + text[begin:], prompt


def _begin(template: ChatTemplate, conversation: Conversation, text: str, answer: int) -> int:
    """Where the answer begins in `text`: where two renderings that differ in the answer alone part."""
    message = conversation.messages[answer]
    other: dict[str, Any] = {**message}
    content = message.get("content")
    if isinstance(content, str) and content:
        other["content"] = ("1" if content[0] != "1" else "2") + content
    elif isinstance(content, list) and content:
        other["content"] = [{"type": "text", "text": "1" if content[0]["text"][:1] != "1" else "2"}, *content]
    else:
        first = message["tool_calls"][0]
        renamed = {**first, "function": {**first["function"], "name": f"1{first['function']['name']}"}}
        other["tool_calls"] = [renamed, *message["tool_calls"][1:]]
    changed = template.render([*conversation.messages[:answer], other], conversation)
    return _common(text, changed)


def _common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many leading elements are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _encode(
    batch: list[_Rendered | Example], tokenizer: PreTrainedTokenizerBase, notes: Counter[str]
) -> Iterator[Example]:
    ids: dict[bool, Iterator[list[int]]] = {}
    for template in (True, False):
        part = [item for item in batch if isinstance(item, _Rendered) and item.template is template]
        texts = [text for item in part for text in (item.text, item.prompt)]
        ids[template] = iter(_ids(tokenizer, texts, special=not template))
    for item in batch:
        if isinstance(item, Example):
            yield item
        else:
            yield _example(item, next(ids[item.template]), next(ids[item.template]), tokenizer, notes)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    return encoded


def _example(
    item: _Rendered, ids: list[int], prompt: list[int], tokenizer: PreTrainedTokenizerBase, notes: Counter[str]
) -> Example:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    begin = 0
    if item.prompt:
        if not item.template and prompt and prompt[-1] == eos and ids[len(prompt) - 1 : len(prompt)] != [eos]:
            prompt = prompt[:-1]  # which the tokenizer puts at the end of every text
        begin = _common(prompt, ids)
        if begin < len(prompt):
            notes["answers whose first characters share a token with the end of their prompt"] += 1
    if not item.template and eos is not None and ids[-1:] != [eos]:
        ids = [*ids, eos]
    if bos is not None and ids[:2] == [bos, bos]:
        notes["examples that began with two beginning-of-sequence tokens, of which one was taken out"] += 1
        ids, begin = ids[1:], max(begin - 1, 0)
    trained = [0] * begin + [1] * (len(ids) - begin)
    return Example(ids, trained, item.origin, item.source, splittable=not item.prompt)
