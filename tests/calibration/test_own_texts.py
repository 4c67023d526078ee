"""Texts that a model writes itself: drawn as the model predicts, begun as it knows texts, and gone on with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loki.calibration import own_texts
from loki.calibration.own_texts import first_tokens, write_batch, write_own_texts
from loki.calibration.settings import OwnTextSettings
from loki.errors import LokiError
from tests.calibration.test_texts import gemma_like_tokenizer
from tests.tiny_models import tiny_model, tiny_tokenizer

SETTINGS = OwnTextSettings(tokens=60, length=16, batch_size=2, device="cpu")


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_call_writes_the_same_texts_and_no_text_twice(llama_dir: Path, tmp_path: Path) -> None:
    assert write_own_texts(llama_dir, tmp_path / "a.jsonl", SETTINGS) == 4
    torch.manual_seed(5)  # what was drawn before changes nothing
    write_own_texts(llama_dir, tmp_path / "b.jsonl", SETTINGS)
    assert texts_of(tmp_path / "a.jsonl") == texts_of(tmp_path / "b.jsonl")
    assert len({*texts_of(tmp_path / "a.jsonl")}) == 4
    assert not list(tmp_path.glob("*.partial"))


def test_an_interrupted_call_is_gone_on_with(llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own_texts(llama_dir, tmp_path / "whole.jsonl", SETTINGS)
    calls: list[int] = []

    def stops(*arguments: Any) -> list[str]:
        calls.append(arguments[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write_batch(*arguments)

    monkeypatch.setattr(own_texts, "write_batch", stops)
    output = tmp_path / "own.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_own_texts(llama_dir, output, SETTINGS)
    assert not output.exists()
    with pytest.raises(LokiError, match=r"other settings .*length"):
        write_own_texts(llama_dir, output, OwnTextSettings(tokens=60, length=17, batch_size=2))
    write_own_texts(llama_dir, output, SETTINGS)
    assert calls == [0, 1, 1]
    assert texts_of(output) == texts_of(tmp_path / "whole.jsonl")


def test_tokens_are_drawn_as_the_model_predicts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer(chat_template=False)
    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 5.0  # of no matter here
    start = first_tokens(tokenizer)
    # Not all bytes are text by themselves.
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: " ".join(map(str, ids)))
    drawn = write_batch(model, tokenizer, start, 4000, 2, 0)
    first = torch.tensor([int(text.split()[1]) for text in drawn])
    expected = model(torch.tensor([start])).logits[0, -1].softmax(-1)
    found = torch.bincount(first, minlength=len(expected)) / len(first)
    assert float((found - expected).abs().sum()) < 1.2 * float((expected * (1 - expected) / len(first)).sqrt().sum())


def test_how_a_text_begins() -> None:
    base = tiny_tokenizer(chat_template=False)
    assert first_tokens(base) == [base.bos_token_id]
    chat = tiny_tokenizer()
    chat.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert chat.decode(first_tokens(chat)) == "<s><user>"
    chat.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    assert chat.decode(first_tokens(chat)) == "user: "
    beginning = gemma_like_tokenizer()
    beginning.chat_template = chat.chat_template
    assert beginning.decode(first_tokens(beginning)) == "<s>user: "
    chat.chat_template = "a template that shows nothing"
    assert first_tokens(chat) == [chat.bos_token_id]
    chat.chat_template = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    assert chat.decode(first_tokens(chat)) == "["  # takes contents in parts only
    chat.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(LokiError, match="no users"):
        first_tokens(chat)


def test_bad_settings(llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="--length"):
        write_own_texts(llama_dir, tmp_path / "own.jsonl", OwnTextSettings(length=1))
    with pytest.raises(LokiError, match="tokens 0"):
        OwnTextSettings(tokens=0)
    (tmp_path / "own.jsonl").write_text("mine")
    with pytest.raises(LokiError, match="exists"):
        write_own_texts(llama_dir, tmp_path / "own.jsonl", SETTINGS)
    assert (tmp_path / "own.jsonl").read_text() == "mine"
