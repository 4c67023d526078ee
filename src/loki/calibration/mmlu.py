"""MMLU (arXiv 2009.03300): the hub's data set `cais/mmlu`, or a local copy of it."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_from_disk

from loki.calibration.prompts import question_prompt
from loki.calibration.records import Conversation, Record
from loki.errors import LokiError, one_line
from loki.inputs import files_below
from loki.models.hub import fetch

HUB_ID = "cais/mmlu"
TABLE_SUFFIXES = (".parquet", ".csv")
_LETTERS = ("A", "B", "C", "D")
_CHOICE_COLUMNS = tuple(
    tuple(form.format(*place) for place in zip(range(26), range(1, 27), ascii_lowercase, strict=True))
    for form in ("{2}", "choice{0}", "choice_{0}", "choice{1}", "choice_{1}", "choice_{2}", "option_{2}", "option{1}")
)
_ALL_SUBJECTS = "all"  # the hub's folder that repeats the questions of all others


def read_mmlu_hub() -> list[Record]:
    """The test split of all 57 subjects, 14042 questions, from the hub or from the cache of an earlier download.

    Raises:
        LokiError: if the hub cannot be reached and nothing is cached; names the local alternatives.
    """
    folder = fetch(
        HUB_ID,
        "cannot be fetched from the hub now",
        "instead of mmlu, give a local copy of it (parquet or CSV files per subject, or a save_to_disk folder) or a "
        "JSONL file of prompts",
        repo_type="dataset",
        allow_patterns=f"{_ALL_SUBJECTS}/test-*.parquet",
    )
    return read_mmlu_copy(folder / _ALL_SUBJECTS)


def read_mmlu_copy(path: Path) -> list[Record]:
    """The test split from a local copy.

    Args:
        path: a folder made by `save_to_disk`; a folder in the hub's layout (`<subject>/test-*.parquet`) or the
            original one (`data/test/<subject>_test.csv`, without a header: question, A, B, C, D, answer); a folder
            of `<subject>.parquet` or `<subject>.csv` files; or one such file. A CSV file may have a header: question,
            the choices as A, B, C, D or choice0 to choice3, and answer (a letter, an index or a text).

    Raises:
        LokiError: if the folder holds no questions, or a file cannot be read or lacks a column; names the file.
    """
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _records(_saved_to_disk(path), origin=str(path))
    files = _question_files(path)
    if not files:
        raise LokiError(
            f"data folder {path} holds no copy of MMLU: expected <subject>/test-*.parquet, <subject>_test.csv, "
            "<subject>.parquet or <subject>.csv files, or a folder made by save_to_disk"
        )
    records: list[Record] = []
    counts: Counter[str] = Counter()
    for file, subject in files:
        records += _records(_table(file), origin=str(file), subject=subject, counts=counts)
    return records


def _records(
    rows: Iterable[Mapping[str, Any]], origin: str, subject: str = "", counts: Counter[str] | None = None
) -> list[Record]:
    """Records of table rows; `subject` is that of rows without one, `counts` the records read so far per subject."""
    counts = Counter() if counts is None else counts
    records = []
    for number, row in enumerate(rows):
        try:
            question, choices, about = _question(row, subject)
            prompt = question_prompt(about, question, choices)
        except LokiError as error:
            raise LokiError(f"{origin}, question {number}: {error}") from error
        records.append(Record(f"{about}/{counts[about]}", about, Conversation.from_user(prompt)))
        counts[about] += 1
    if not records:
        raise LokiError(f"{origin} is empty: it must hold questions")
    return records


def _saved_to_disk(path: Path) -> Dataset:
    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LokiError(f"data folder {path} cannot be read as one made by save_to_disk ({one_line(error)})") from error
    if not isinstance(saved, DatasetDict):
        return saved
    if "test" not in saved:
        raise LokiError(f"data folder {path} has the splits {', '.join(saved)}, but no test split: save that one")
    return saved["test"]


def _question_files(path: Path) -> list[tuple[Path, str]]:
    """The files that hold test questions, each with its subject; sorted, so that sample ids are stable."""
    if path.is_file():
        return [(path, path.stem.removesuffix("_test"))]
    tables = sorted(file for file in files_below(path, "data folder") if file.suffix in TABLE_SUFFIXES)
    files = [(file, file.parent.name) for file in tables if file.stem == "test" or file.stem.startswith("test-")]
    files += [(file, file.stem.removesuffix("_test")) for file in tables if file.stem.endswith("_test")]
    if not files:
        files = [(file, file.stem) for file in tables if file.parent == path]
    return [(file, subject) for file, subject in files if subject != _ALL_SUBJECTS] or files


def _table(file: Path) -> list[dict[str, Any]]:
    try:
        if file.suffix == ".parquet":
            rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
            return rows
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = [line for line in csv.reader(stream, strict=True) if line]
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        raise LokiError(f"data file {file} cannot be read ({one_line(error)})") from error
    return _csv_rows(lines, file)


def _csv_rows(lines: list[list[str]], file: Path) -> list[dict[str, Any]]:
    columns = ["question", *_LETTERS, "answer"]
    if lines and "question" in [name.strip().lower() for name in lines[0]]:
        columns = [name.strip() for name in lines.pop(0)]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        if len(line) != len(columns):
            raise LokiError(
                f"data file {file}, question {number}: has {len(line)} fields for the columns {', '.join(columns)}: "
                "expected question, A, B, C, D, answer"
            )
        rows.append(dict(zip(columns, line, strict=True)))
    return rows


def _question(row: Mapping[str, Any], subject: str) -> tuple[str, list[str], str]:
    """Question, choices and subject of a row, whose choices are a list or have columns of their own.

    Raises:
        LokiError: if one of them is missing, or the answer, if there is one, is none of the choices.
    """
    fields = {str(name).strip().lower(): value for name, value in row.items()}
    choices = fields.get("choices", fields.get("options"))
    if not isinstance(choices, list):
        found = next((names for names in _CHOICE_COLUMNS if set(names[:2]) <= fields.keys()), ())
        choices = [str(fields[name]) for name in takewhile(lambda name: fields.get(name) is not None, found)]
    question, about = fields.get("question"), fields.get("subject") or subject
    if not isinstance(question, str) or not choices or not about:
        raise LokiError(
            f"has the columns {', '.join(map(str, row))}: expected question, choices (or A to D, or choice0 to "
            "choice3) and subject"
        )
    _check_answer(fields.get("answer"), choices)
    return question, choices, str(about)


def _check_answer(answer: Any, choices: list[str]) -> None:
    """Refuse an answer that is neither letter, index nor text of a choice: columns are mixed up then."""
    if answer is None:
        return
    known = {*ascii_uppercase[: len(choices)], *map(str, range(len(choices) + 1)), *map(str, choices)}
    if str(answer).strip() not in {text.strip() for text in known}:
        raise LokiError(f"answer is {answer!r}: expected a letter, a number, or the text of a choice")
