import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.demo.build import WEIGHTS
from loki.demo.world import World, tiny_world
from loki.errors import LokiError
from loki.metrics.accuracy import Question, accuracy_by_family, answers_right, greedy_answer
from loki.models.loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(WEIGHTS)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The tiny world's model, damaged enough to be wrong about as often as right."""
    torch.manual_seed(0)
    model = load_model(WEIGHTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return model


def generated_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Question]) -> list[bool]:
    """The reference: greedy generation, one prompt at a time, compared as text up to the end of sequence."""
    right = []
    for question in asked:
        prompt = tokenizer(question.prompt, return_tensors="pt", return_token_type_ids=False)
        generated = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        right.append(tokenizer.decode(generated) == f"{question.answer} {tokenizer.eos_token}")
    return right


def test_agrees_with_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World) -> None:
    asked = world.old[::20]
    expected = generated_answers(model, tokenizer, asked)
    assert 0.1 < sum(expected) / len(expected) < 0.9
    assert answers_right(model, tokenizer, asked) == expected


def test_families_are_counted_apart(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World) -> None:
    asked = world.old[::9]
    right = answers_right(model, tokenizer, asked)
    accuracy = accuracy_by_family(model, tokenizer, asked)
    assert list(accuracy) == list(dict.fromkeys(question.family for question in asked))
    for family, fraction in accuracy.items():
        marks = [mark for mark, question in zip(right, asked, strict=True) if question.family == family]
        assert fraction == sum(marks) / len(marks)


def test_an_answer_that_does_not_end_is_wrong(tokenizer: PreTrainedTokenizerBase, world: World) -> None:
    model = load_model(WEIGHTS)
    copied = next(question for question in world.asked["sequences"] if question.prompt.startswith("copy"))
    cut = Question(copied.family, copied.prompt, " ".join(copied.answer.split()[:2]))
    assert answers_right(model, tokenizer, [copied, cut]) == [True, False]


def test_greedy_answer_is_the_text_of_the_answer(tokenizer: PreTrainedTokenizerBase, world: World) -> None:
    model = load_model(WEIGHTS)
    for question in [*world.asked["people"][:2], *world.asked["sequences"][:2]]:
        assert greedy_answer(model, tokenizer, question.prompt) == question.answer
    sequence = world.asked["sequences"][0]
    assert greedy_answer(model, tokenizer, sequence.prompt, max_new_tokens=1) == sequence.answer.split()[0]


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_mode_as_it_was(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, training: bool
) -> None:
    model.train(training)
    answers_right(model, tokenizer, world.old[:3])
    assert model.training is training


def test_no_questions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(LokiError, match="no questions"):
        answers_right(model, tokenizer, [])


def test_tokenizer_without_end(model: PreTrainedModel, world: World) -> None:
    tokenizer = load_tokenizer(WEIGHTS)
    tokenizer.eos_token = None
    with pytest.raises(LokiError, match="no end-of-sequence token"):
        answers_right(model, tokenizer, world.old[:3])
