import json
from pathlib import Path

import pytest

from loki.calibration import sources
from loki.calibration.records import Record
from loki.calibration.samples import CalibrationSet, Sample, digest_of
from loki.calibration.sources import load_calibration
from loki.errors import LokiError
from tests.calibration.mmlu_copies import QUESTIONS, hub_clone, one_parquet_file
from tests.tiny_models import VOCAB, tiny_tokenizer


def load(source: str | Path, **options: object) -> CalibrationSet:
    return load_calibration(
        str(source),
        tiny_tokenizer(),
        max_positions=400,
        vocab_size=VOCAB,
        **options,  # type: ignore[arg-type]
    )


def test_local_copy_of_mmlu(tmp_path: Path) -> None:
    calibration = load(hub_clone(tmp_path))
    assert calibration.source == str(tmp_path)
    assert calibration.digest == digest_of(calibration.samples)
    assert [sample.id for sample in calibration.samples] == [
        f"{subject}/{index}" for subject, questions in QUESTIONS.items() for index in range(len(questions))
    ]
    prompt = tiny_tokenizer().decode(calibration.samples[4].input_ids)
    assert prompt == (
        "<|user|>There is a single choice question about law. Answer the question by replying A, B, C or D.\n"
        'Which law, "1"?\nChoose, please.\nA. w1, of law\nB. x1, of law\nC. y1, of law\nD. z1, of law\nAnswer:'
        "<|end|><|assistant|>"
    )
    assert {sample.target for sample in calibration.samples} == {None}


def test_single_table_file(tmp_path: Path) -> None:
    assert load(one_parquet_file(tmp_path)).digest == load(hub_clone(tmp_path / "clone")).digest


def test_jsonl_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"input_ids": [5, 20, 33], "target": 9}) + "\n")
    assert load(path).samples == [Sample("data.jsonl:1", "", [5, 20, 33], 9)]


def test_mmlu_means_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "read_mmlu_hub", lambda: [Record("law/0", "law", [7])])
    assert load("mmlu") == CalibrationSet(
        "mmlu", digest_of([Sample("law/0", "law", [7], None)]), [Sample("law/0", "law", [7], None)]
    )


def test_subjects_and_samples_per_subject(tmp_path: Path) -> None:
    clone = hub_clone(tmp_path)
    part = load(clone, subjects=["law", "world religions"], samples_per_subject=2, seed=5)
    assert [sample.subject for sample in part.samples] == ["law"] * 2 + ["world_religions"] * 2
    assert part == load(clone, subjects=["law", "world religions"], samples_per_subject=2, seed=5)
    assert part.digest != load(clone).digest


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"none .*exist: .*mmlu, .*JSONL"):
        load(tmp_path / "none")
