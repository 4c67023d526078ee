import json
from pathlib import Path
from typing import Any

import pytest

from loki.calibration.records import Record, Text
from loki.calibration.samples import CalibrationSet
from loki.calibration.sources import load_calibration
from loki.calibration.text_records import LONGEST_PIECE, split_texts
from loki.errors import LokiError
from tests.tiny_models import tiny_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. " * 20


def load(path: Path, max_positions: int | None = 64, **options: Any) -> CalibrationSet:
    return load_calibration(str(path), tiny_tokenizer(), max_positions=max_positions, vocab_size=320, **options)


def test_a_text_file_is_cut_into_equal_pieces(tmp_path: Path) -> None:
    path = tmp_path / "general.txt"
    path.write_text(TEXT)
    samples = load(path).samples
    lengths = [len(sample.input_ids) for sample in samples]
    assert max(lengths) <= 64 and max(lengths) - min(lengths) <= 1
    assert [token for sample in samples for token in sample.input_ids] == tiny_tokenizer()(TEXT)["input_ids"]
    assert [sample.id for sample in samples[:2]] == ["general.txt#1", "general.txt#2"]
    assert len(load(path, samples_per_subject=3).samples) == 3


def test_texts_in_a_jsonl_file(tmp_path: Path) -> None:
    path = tmp_path / "general.jsonl"
    records = [{"text": "short"}, {"text": TEXT, "id": "long", "subject": "foxes"}, {"prompt": "as it is"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    samples = load(path).samples
    assert samples[0].id == "general.jsonl:1"
    assert samples[1].id == "long#1" and samples[1].subject == "foxes"
    assert samples[-1].input_ids == tiny_tokenizer()("as it is")["input_ids"]
    assert len(load(path, max_positions=None).samples) == 3


def test_every_piece_begins_as_a_text_does() -> None:
    tokenizer = tiny_tokenizer()
    bos = tokenizer.bos_token_id

    class AddsBeginning:
        bos_token_id = bos

        def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
            ids = tokenizer(text)["input_ids"]
            return {"input_ids": [bos, *ids] if add_special_tokens else ids}

    pieces = [record.prompt for record in split_texts([Record("a", "", Text(TEXT))], AddsBeginning(), 32)]
    assert all(piece[0] == bos and len(piece) <= 32 for piece in pieces)
    assert [token for piece in pieces for token in piece[1:]] == tokenizer(TEXT)["input_ids"]


def test_pieces_are_no_longer_than_is_useful() -> None:
    pieces = split_texts([Record("a", "", Text("x" * 5000))], tiny_tokenizer(), 131072)
    assert max(len(piece.prompt) for piece in pieces) <= LONGEST_PIECE


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.jsonl", b'{"text": " "}', r"sample a\.jsonl:1: .*empty"),
        ("a.jsonl", b'{"text": 3}', "line 1: text is 3"),
    ],
)
def test_bad_texts_are_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LokiError, match=problem):
        load(tmp_path / name)
