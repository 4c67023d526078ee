"""A very small MMLU and the layouts in which copies of the real one come."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

FEATURES = Features(
    {
        "question": Value("string"),
        "subject": Value("string"),
        "choices": Sequence(Value("string")),
        "answer": ClassLabel(names=["A", "B", "C", "D"]),
    }
)
QUESTIONS: dict[str, list[dict[str, Any]]] = {
    subject: [
        {
            "question": f'Which {subject}, "{number}"?\nChoose, please.',
            "subject": subject,
            "choices": [f"{letter}{number}, of {subject}" for letter in "wxyz"],
            "answer": number % 4,
        }
        for number in range(count)
    ]
    for subject, count in {"abstract_algebra": 3, "law": 2, "world_religions": 4}.items()
}
ALL = [question for questions in QUESTIONS.values() for question in questions]
OTHER = [{"question": "not a test question", "subject": "", "choices": ["a", "b", "c", "d"], "answer": 0}]


def hub_clone(root: Path) -> Path:
    """All files of the hub's repository: every subject, `all` with the same questions again, and other splits."""
    for name, questions in {**QUESTIONS, "all": ALL}.items():
        _parquet(root / name / "test-00000-of-00001.parquet", questions)
        _parquet(root / name / "dev-00000-of-00001.parquet", OTHER)
    _parquet(root / "auxiliary_train" / "train-00000-of-00001.parquet", OTHER)
    _parquet(root / ".cache" / "test-00000-of-00001.parquet", OTHER)
    (root / "README.md").write_text("# MMLU\n")
    return root


def hub_only_all(root: Path) -> Path:
    """The hub's folder `all` alone."""
    _parquet(root / "all" / "test-00000-of-00001.parquet", ALL)
    return root


def hub_in_shards(root: Path) -> Path:
    """The hub's layout with every subject in two files."""
    for name, questions in QUESTIONS.items():
        _parquet(root / name / "test-00000-of-00002.parquet", questions[:1])
        _parquet(root / name / "test-00001-of-00002.parquet", questions[1:])
    return root


def one_parquet_file(root: Path) -> Path:
    """A single file with all subjects."""
    return _parquet(root / "everything.parquet", ALL)


def parquet_per_subject(root: Path) -> Path:
    """`<subject>.parquet`."""
    for name, questions in QUESTIONS.items():
        _parquet(root / f"{name}.parquet", questions)
    return root


def original_tar(root: Path) -> Path:
    """The folder in the authors' archive: CSV without headers, several splits."""
    for split in ("dev", "test", "val"):
        for name, questions in QUESTIONS.items():
            _csv(root / "data" / split / f"{name}_{split}.csv", questions if split == "test" else OTHER)
    return root


def csv_with_header(root: Path) -> Path:
    """`<subject>.csv` with named columns."""
    for name, questions in QUESTIONS.items():
        _csv(root / f"{name}.csv", questions, header=["question", "A", "B", "C", "D", "answer"])
    return root


def csv_with_numbered_choices(root: Path) -> Path:
    """`<subject>.csv` with the columns choice0 to choice3, and the answer as an index."""
    header = ["question", *(f"choice{number}" for number in range(4)), "answer"]
    for name, questions in QUESTIONS.items():
        _csv(root / f"{name}.csv", questions, header=header, answer=lambda item: str(item["answer"]))
    return root


def csv_with_answers_as_texts(root: Path) -> Path:
    """One file of all subjects, with the answer as a text."""
    header = ["Question", "A", "B", "C", "D", "Answer", "Subject"]
    _csv(
        root / "everything.csv",
        ALL,
        header=header,
        answer=lambda item: item["choices"][item["answer"]],
        more=lambda item: [item["subject"]],
    )
    return root


def saved_dataset(root: Path) -> Path:
    """`Dataset.save_to_disk`."""
    Dataset.from_list(ALL, features=FEATURES).save_to_disk(root / "saved")
    return root / "saved"


def saved_splits(root: Path) -> Path:
    """`DatasetDict.save_to_disk`."""
    splits = {
        "test": Dataset.from_list(ALL, features=FEATURES),
        "dev": Dataset.from_list(OTHER, features=FEATURES),
    }
    DatasetDict(splits).save_to_disk(root / "saved")
    return root / "saved"


LAYOUTS: list[Callable[[Path], Path]] = [
    hub_clone,
    hub_only_all,
    hub_in_shards,
    one_parquet_file,
    parquet_per_subject,
    original_tar,
    csv_with_header,
    csv_with_numbered_choices,
    csv_with_answers_as_texts,
    saved_dataset,
    saved_splits,
]


def _parquet(path: Path, questions: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(questions, features=FEATURES).to_parquet(path)
    return path


def _csv(
    path: Path,
    questions: list[dict[str, Any]],
    header: list[str] | None = None,
    answer: Callable[[dict[str, Any]], str] = lambda item: "ABCD"[item["answer"]],
    more: Callable[[dict[str, Any]], list[str]] = lambda item: [],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        if header:
            writer.writerow(header)
        writer.writerows([item["question"], *item["choices"], answer(item), *more(item)] for item in questions)
