"""The same records come out of every format of file, and whatever is wrong with one is said in one line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from loki.data.reading import read_records
from loki.data.sources import Source, as_sources, local_paths
from loki.errors import LokiError

RECORDS: list[dict[str, Any]] = [
    {"prompt": f"{number}, äöü?\u2028", "completion": f'"{number}",\nyes'} for number in range(3)
]
TOOL_RECORDS = [
    {"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "add", "parameters": {"a": {"type": "x"}}}]},
    {"messages": [{"role": "user", "content": "ho"}], "tools": [{"name": "sub", "parameters": {"b": {"type": "y"}}}]},
]


def read(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [record for _, record in read_records(Source(str(path), **options), what="training data")]


def jsonl(root: Path, records: list[dict[str, Any]], name: str = "a.jsonl") -> Path:
    (root / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return root / name


def jsonl_of_windows(root: Path, records: list[dict[str, Any]]) -> Path:
    lines = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (root / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n\r\n")
    return root / "a.jsonl"


def jsonl_in_utf16(root: Path, records: list[dict[str, Any]]) -> Path:
    (root / "a.jsonl").write_bytes("\n".join(map(json.dumps, records)).encode("utf-16"))
    return root / "a.jsonl"


def gzipped(root: Path, records: list[dict[str, Any]]) -> Path:
    (root / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(root, records).read_bytes()))
    return root / "a.jsonl.gz"


def array(root: Path, records: list[dict[str, Any]]) -> Path:
    (root / "a.json").write_text(json.dumps(records, indent=2))
    return root / "a.json"


def array_on_a_line(root: Path, records: list[dict[str, Any]]) -> Path:
    (root / "a.json").write_text(json.dumps(records))
    return root / "a.json"


def parquet(root: Path, records: list[dict[str, Any]]) -> Path:
    Dataset.from_list(records).to_parquet(root / "a.parquet")
    return root / "a.parquet"


def saved(root: Path, records: list[dict[str, Any]]) -> Path:
    Dataset.from_list(records).save_to_disk(root / "saved")
    return root / "saved"


def saved_splits(root: Path, records: list[dict[str, Any]]) -> Path:
    splits = {"train": Dataset.from_list(records), "test": Dataset.from_list(records[:1])}
    DatasetDict(splits).save_to_disk(root / "saved")
    return root / "saved"


def folder(root: Path, records: list[dict[str, Any]]) -> Path:
    (root / "data").mkdir()
    jsonl(root / "data", records[:1], "1.jsonl")
    Dataset.from_list(records[1:]).to_parquet(root / "data" / "2.parquet")
    (root / "data" / "README.md").write_text("notes")
    (root / "data" / ".cache.jsonl").write_text("{")
    return root / "data"


def folder_of_splits(root: Path, records: list[dict[str, Any]]) -> Path:
    (root / "data").mkdir()
    jsonl(root / "data", records, "train-00000-of-00001.jsonl")
    jsonl(root / "data", records[:1], "test-00000-of-00001.jsonl")
    return root / "data"


FORMATS: list[Callable[[Path, list[dict[str, Any]]], Path]] = [
    jsonl,
    jsonl_of_windows,
    jsonl_in_utf16,
    gzipped,
    array,
    array_on_a_line,
    parquet,
    saved,
    saved_splits,
    folder,
    folder_of_splits,
]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("records", [RECORDS, TOOL_RECORDS], ids=["texts", "tools"])
def test_every_format_gives_the_same_records(
    tmp_path: Path, write: Callable[[Path, list[dict[str, Any]]], Path], records: list[dict[str, Any]]
) -> None:
    assert read(write(tmp_path, records)) == records


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_csv(tmp_path: Path, name: str, delimiter: str) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [delimiter.join(map(quoted, record.values())) for record in RECORDS]
    (tmp_path / name).write_text("\ufeff" + delimiter.join(RECORDS[0]) + "\n" + "\n".join(lines) + "\n")
    assert read(tmp_path / name) == RECORDS


def test_a_null_in_json_stays(tmp_path: Path) -> None:
    records = [{"messages": [{"role": "assistant", "content": None}], "x": {"y": None}}]
    assert read(jsonl(tmp_path, records)) == records


def test_a_text_file_is_one_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("once\nupon")
    assert read(tmp_path / "a.txt") == [{"text": "once\nupon"}]


def test_where_records_stand(tmp_path: Path) -> None:
    path = jsonl_of_windows(tmp_path, RECORDS)
    path.write_bytes(b"\n" + path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    places = [where for where, _ in read_records(Source(str(path)), what="training data")]
    assert places == [f"{path}, line {number}" for number in (2, 3, 4)]
    path = array(tmp_path, RECORDS)
    assert next(read_records(Source(str(path)), what="training data"))[0] == f"{path}, record 1"


def test_splits(tmp_path: Path) -> None:
    for write in (saved_splits, folder_of_splits):
        path = write(tmp_path, RECORDS)
        assert read(path, split="test") == RECORDS[:1]
        with pytest.raises(LokiError, match=r"split dev: .*--data-split \(train, test\)"):
            read(path, split="dev")


def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Dataset:
        asked.append((*arguments, options))
        return Dataset.from_list(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read(Path("org/name")) == RECORDS
    assert read(Path("org/name"), split="test", subset="en") == RECORDS
    assert asked == [("org/name", None, {"split": "train"}), ("org/name", "en", {"split": "test"})]


def test_what_cannot_be_fetched_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Dataset:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(LokiError, match=r"org/name .*no network.*--data-split") as caught:
        read(Path("org/name"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.jsonl", "folder/none.jsonl", "/none", "./folder/none", "a/b/c"])
def test_what_does_not_exist(name: str) -> None:
    with pytest.raises(LokiError, match=f"{name} does not exist"):
        list(read_records(Source(name), what="training data"))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"\x89HDF\xff", "UTF-8"),
        ("a.jsonl", b"\x1f\x8bno", "gzip"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.arrow", b"ARROW1 and no more", "cannot be read"),
        ("a.json", b'[{"text": "a"},\n', "not JSON"),
        ("a.json", b'[{"text": "a"}, 3]', "line 1: a JSON list"),
        ("a.csv", b"text\na,b\n", "line 2: 2 fields .*text"),
        ("a.csv", b"text,text\na,b\n", "column twice"),
        ("a.csv", b'text\n"a', "no CSV"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LokiError, match=problem) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LokiError, match=r"empty .*no data: .*jsonl"):
        read(tmp_path / "empty")
    path = saved(tmp_path, RECORDS)
    next(path.glob("*.arrow")).unlink()
    with pytest.raises(LokiError, match="save_to_disk"):
        read(path)


def test_sources_as_they_are_written(tmp_path: Path) -> None:
    path = jsonl(tmp_path, RECORDS, "a:3")
    assert as_sources(path) == [Source(str(path))]
    assert as_sources([f"{path}:0.5", "org/name:2e-1"], split="test") == [
        Source(str(path), 0.5, "test"),
        Source("org/name", 0.2, "test"),
    ]
    assert local_paths([f"{path}:0.5", "org/name:1"]) == [path]
    with pytest.raises(LokiError, match=r"1\.2\.3"):
        as_sources("a.jsonl:1.2.3")
    with pytest.raises(LokiError, match="give --data"):
        as_sources([])
