from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from loki.calibration.mmlu import read_mmlu_copy, read_mmlu_hub
from loki.calibration.prompts import question_prompt
from loki.calibration.records import Conversation, Record
from loki.errors import LokiError
from loki.models import hub
from tests.calibration.mmlu_copies import LAYOUTS, QUESTIONS, hub_clone, original_tar, saved_splits

EXPECTED = [
    Record(
        f"{subject}/{index}",
        subject,
        Conversation.from_user(question_prompt(subject, question["question"], question["choices"])),
    )
    for subject, questions in QUESTIONS.items()
    for index, question in enumerate(questions)
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_test_questions(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    assert read_mmlu_copy(layout(tmp_path)) == EXPECTED


def test_the_hub_gives_the_same_as_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(hub_clone(tmp_path))

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert read_mmlu_hub() == EXPECTED
    assert asked == {"repository": "cais/mmlu", "repo_type": "dataset", "allow_patterns": "all/test-*.parquet"}


def test_without_a_network_the_local_alternatives_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hub.snapshot_download
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: real(*args, **options, cache_dir=tmp_path))
    with pytest.raises(LokiError, match=r"cais/mmlu .*save_to_disk.* JSONL") as caught:
        read_mmlu_hub()
    assert "\n" not in str(caught.value)


def test_a_folder_without_questions(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(LokiError, match=r"<subject>/test-\*\.parquet"):
        read_mmlu_copy(tmp_path)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    file = hub_clone(tmp_path) / "law" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(LokiError, match=r"law/test-00000-of-00001\.parquet .*read"):
        read_mmlu_copy(tmp_path)


def test_a_csv_line_of_another_length_is_named(tmp_path: Path) -> None:
    file = original_tar(tmp_path) / "data" / "test" / "law_test.csv"
    file.write_text(file.read_text() + "Who?,a,b,c,A\n")
    with pytest.raises(LokiError, match=r"law_test\.csv, question 2: .*5 fields"):
        read_mmlu_copy(tmp_path)


def test_a_csv_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "law.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LokiError, match=r"law\.csv .*read"):
        read_mmlu_copy(tmp_path)


@pytest.mark.parametrize("name", ["law.csv", "law_test.csv"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(LokiError, match=rf"{name} is empty"):
        read_mmlu_copy(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("query", "Who?", "columns query, choices, subject: .*question"),
        ("question", " ", "question .*empty"),
        ("choices", ["one"], "1 choices"),
        ("subject", "", "expected question, choices .* and subject"),
        ("answer", "E", "answer is 'E'"),
    ],
)
def test_unusable_questions_are_named(tmp_path: Path, column: str, value: object, problem: str) -> None:
    row: dict[str, Any] = {"question": "Who?", "choices": ["a", "b"], "subject": "law"}
    if column == "query":
        row = {column if name == "question" else name: value for name, value in row.items()}
        row["choices"], row["subject"] = ["a", "b"], "law"
    else:
        row[column] = value
    Dataset.from_list([row]).save_to_disk(tmp_path / "saved")
    with pytest.raises(LokiError, match=f"saved, question 0: .*{problem}"):
        read_mmlu_copy(tmp_path / "saved")


def test_saved_splits_without_a_test_split(tmp_path: Path) -> None:
    DatasetDict({"dev": Dataset.from_list(QUESTIONS["law"])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(LokiError, match=r"splits dev, .*test"):
        read_mmlu_copy(tmp_path / "saved")


def test_a_broken_saved_folder_is_named(tmp_path: Path) -> None:
    saved = saved_splits(tmp_path)
    next((saved / "test").glob("*.arrow")).unlink()
    with pytest.raises(LokiError, match=r"saved .*save_to_disk"):
        read_mmlu_copy(saved)
