from loki.metrics.tokenizers import same_tokenizer
from tests.tiny_models import tiny_tokenizer


def test_a_tokenizer_is_itself() -> None:
    assert same_tokenizer(tiny_tokenizer(), tiny_tokenizer(chat_template=False), ["some text", ""])


def test_another_vocabulary_is_another_tokenizer() -> None:
    other = tiny_tokenizer()
    other.add_tokens(["<more>"])
    assert not same_tokenizer(tiny_tokenizer(), other, [])


def test_another_start_is_another_tokenizer() -> None:
    other = tiny_tokenizer()
    other.bos_token = "<pad>"
    assert not same_tokenizer(tiny_tokenizer(), other, [])


def test_splitting_otherwise_is_another_tokenizer() -> None:
    other = tiny_tokenizer()
    other.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    assert not same_tokenizer(tiny_tokenizer(), other, ["text"])
