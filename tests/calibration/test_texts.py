"""Token ids of texts for second moments and for what is kept: every piece is a text as the model knows texts."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from loki.calibration.records import Record, Text
from loki.calibration.text_records import beginning, split_texts
from loki.calibration.texts import cut, load_token_ids
from loki.errors import LokiError
from tests.tiny_models import tiny_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. " * 20


def gemma_like_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that begins every text with its beginning-of-sequence token, as Gemma's and Llama's do."""
    tokenizer = tiny_tokenizer(chat_template=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("name", ["general.txt", "general.jsonl", "prompts.jsonl"])
def test_every_piece_begins_as_the_tokenizer_begins_a_text(tmp_path: Path, name: str) -> None:
    key = "prompt" if name.startswith("prompts") else "text"
    (tmp_path / name).write_text(TEXT if name.endswith(".txt") else json.dumps({key: TEXT}) + "\n")
    tokenizer = gemma_like_tokenizer()
    pieces = load_token_ids(str(tmp_path / name), tokenizer, max_length=32, vocab_size=320)
    assert all(piece[0] == tokenizer.bos_token_id and len(piece) <= 32 for piece in pieces)
    assert [token for piece in pieces for token in piece[1:]] == tokenizer(TEXT, add_special_tokens=False)["input_ids"]


def test_nothing_is_put_before_a_text_that_the_tokenizer_does_not_put_there(tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text(TEXT)
    pieces = load_token_ids(str(tmp_path / "general.txt"), tiny_tokenizer(), max_length=32, vocab_size=320)
    assert [token for piece in pieces for token in piece] == tiny_tokenizer()(TEXT)["input_ids"]


def test_a_text_that_begins_with_the_token_itself_has_it_once_in_every_piece() -> None:
    tokenizer = gemma_like_tokenizer()
    pieces = [one.prompt for one in split_texts([Record("a", "", Text("<s>" + TEXT))], tokenizer, 32)]
    assert all(piece.count(tokenizer.bos_token_id) == 1 and piece[0] == tokenizer.bos_token_id for piece in pieces)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(2, 12), st.booleans())
def test_pieces_hold_every_token_once(body: list[int], longest: int, begins: bool) -> None:
    start = [0]
    pieces = cut(start + body if begins else body, longest, start)
    skipped = 1 if begins else 0
    assert [token for piece in pieces for token in piece[skipped:]] == body
    assert all(len(piece) <= longest and (piece[0] == 0) == begins for piece in pieces)


def test_a_tokenizer_without_such_a_token() -> None:
    assert beginning(tiny_tokenizer()) == []
    assert beginning(gemma_like_tokenizer()) == [tiny_tokenizer().bos_token_id]


def test_several_sources_give_equal_parts(tmp_path: Path) -> None:
    for name, letter in (("a", "a"), ("b", "b"), ("c", "c")):
        (tmp_path / f"{name}.txt").write_text(letter * (20 if name == "c" else 1000))
    sources, tokenizer = [str(tmp_path / f"{name}.txt") for name in "abc"], tiny_tokenizer()
    pieces = load_token_ids(sources, tokenizer, max_length=10, vocab_size=320, max_tokens=301)
    letters = "".join(tokenizer.decode(piece) for piece in pieces)
    assert {letter: letters.count(letter) for letter in "abc"} == {"a": 110, "b": 110, "c": 20}
    assert len(load_token_ids(sources, tokenizer, max_length=10, vocab_size=320)) == 202


def test_too_short(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(LokiError, match="no text of at least 2 tokens"):
        load_token_ids(str(tmp_path / "a.txt"), tiny_tokenizer(), max_length=32, vocab_size=320)
