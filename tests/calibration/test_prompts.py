import logging

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from loki.calibration.prompts import PromptEncoder, question_prompt
from loki.calibration.records import Conversation
from loki.errors import LokiError
from tests.tiny_models import tiny_tokenizer

BOS, EOS, USER, ASSISTANT, END = 0, 1, 4, 5, 7


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(chat_template=False)


def adds_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """As Llama's does: every text begins with the beginning-of-sequence token."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def text_ids(text: str) -> list[int]:
    return list(tiny_tokenizer()(text)["input_ids"])


def test_question_prompt_is_the_published_one() -> None:
    prompt = question_prompt("high_school_physics", "What falls?\nSay it.", ["A stone", "Light", "Time", "Rome"])
    assert prompt == (
        "There is a single choice question about high school physics. "
        "Answer the question by replying A, B, C or D.\n"
        "What falls?\nSay it.\n"
        "A. A stone\nB. Light\nC. Time\nD. Rome\n"
        "Answer:"
    )


def test_question_prompt_names_as_many_letters_as_choices() -> None:
    assert "replying A or B.\n" in question_prompt("law", "Yes?", ["yes", "no"])
    assert "replying A, B, C, D, E or F.\n" in question_prompt("law", "Which?", list("uvwxyz"))


@pytest.mark.parametrize("count", [0, 1, 27])
def test_too_few_or_too_many_choices(count: int) -> None:
    with pytest.raises(LokiError, match=f"{count} choices: .*2 to 26"):
        question_prompt("law", "Which?", ["x"] * count)


def test_conversation_goes_through_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = PromptEncoder(tokenizer).encode(Conversation.from_user("hi"))
    assert ids == [USER, *text_ids("hi"), END, ASSISTANT]


def test_conversation_that_ends_with_the_assistant_is_continued(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}]
    ids = PromptEncoder(tokenizer).encode(Conversation(messages))
    assert ids == [USER, *text_ids("hi"), END, ASSISTANT, *text_ids("I am")]


def test_chat_template_that_begins_with_bos_gives_it_once(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    ids = PromptEncoder(adds_bos(tokenizer)).encode(Conversation.from_user("hi"))
    assert ids == [BOS, USER, *text_ids("hi"), END, ASSISTANT]


def test_text_gets_the_special_tokens_of_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert PromptEncoder(tokenizer).encode("hi") == text_ids("hi")
    assert PromptEncoder(adds_bos(tokenizer)).encode("hi") == [BOS, *text_ids("hi")]


def test_text_that_spells_bos_out_gets_it_once(tokenizer: PreTrainedTokenizerFast) -> None:
    assert PromptEncoder(adds_bos(tokenizer)).encode("<s>hi") == [BOS, *text_ids("hi")]


def test_token_ids_are_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    assert PromptEncoder(adds_bos(tokenizer)).encode([9, BOS, BOS, EOS]) == [9, BOS, BOS, EOS]
    assert PromptEncoder(adds_bos(tokenizer)).encode([BOS, BOS, 9]) == [BOS, BOS, 9]


def test_without_a_chat_template_the_plain_prompt_is_used_and_said_once(
    plain_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = PromptEncoder(plain_tokenizer)
    with caplog.at_level(logging.WARNING, logger="loki"):
        assert encoder.encode("text needs no template") == text_ids("text needs no template")
        assert not caplog.messages
        assert encoder.encode(Conversation.from_user("hi")) == text_ids("hi")
        messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
        assert encoder.encode(Conversation(messages)) == text_ids("be\nhi")
    assert caplog.messages == ["The tokenizer has no chat template: prompts are given to the model as plain text"]


def test_messages_that_the_template_refuses(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(LokiError, match=r"refuses .*\(System role not supported"):
        PromptEncoder(tokenizer).encode(Conversation.from_user("hi"))


@pytest.mark.parametrize("prompt", ["", " \n", Conversation.from_user(" "), []], ids=repr)
def test_empty_prompts(tokenizer: PreTrainedTokenizerFast, prompt: Conversation | str | list[int]) -> None:
    with pytest.raises(LokiError, match="the prompt is empty"):
        PromptEncoder(tokenizer).encode(prompt)
