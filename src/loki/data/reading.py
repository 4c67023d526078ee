"""From a source to records: files of every common format, directories of them, and data sets of `datasets`."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loki.data.sources import Source
from loki.errors import LokiError
from loki.inputs import files_below, read_json_lines, read_text, reading, require_file
from loki.inputs.json_text import check_depth, check_unicode

TRAIN = "train"
_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
_TABLES = {".csv": ",", ".tsv": "\t"}
_JSON = (".jsonl", ".json", ".ndjson")
_BINARY = (".parquet", ".arrow")
_SUFFIXES = (*_JSON, *_TABLES, *_BINARY, ".txt")

Located = tuple[str, dict[str, Any]]


def read_records(source: Source, *, what: str) -> Iterator[Located]:
    """The records of a source, each with where it stands ("train.jsonl, line 3").

    Read are JSON Lines and JSON arrays (gzipped or not), CSV and TSV with a header, parquet, text files (one record
    `{"text": ...}`), directories of such files, what `save_to_disk` wrote, and hub data sets. Where a directory or a
    data set has several splits, `source.split` is taken, by default `train`.

    Tables cannot tell a field that is absent from one that is null: of those, nulls are left out.

    Args:
        source: what to read.
        what: its role, for error messages ("training data").

    Raises:
        LokiError: if the source does not exist, is damaged, empty of files, or has no such split; names the place.
    """
    path = source.path
    if path is None:
        yield from _hub_dataset(source, what)
    elif path.is_file():
        yield from _file(path, what)
    elif any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        yield from _saved_dataset(path, source, what)
    else:
        for file in _files(path, source.split, what):
            yield from _file(file, what)


def _file(path: Path, what: str) -> Iterator[Located]:
    suffix = _suffix(path)
    if suffix in _BINARY:
        yield from _rows(_load_table(path, what), str(path), what)
    elif suffix in _TABLES:
        yield from _csv(path, _TABLES[suffix], what)
    elif suffix == ".txt":
        yield str(path), {"text": read_text(path, what=what)}
    else:  # any other name may be that of a JSON Lines file
        yield from read_json_lines(path, what=what)


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _files(folder: Path, split: str | None, what: str) -> list[Path]:
    files = sorted(file for file in files_below(folder, what) if _suffix(file) in _SUFFIXES and file.is_file())
    if not files:
        raise LokiError(f"{what} {folder} holds no data: expected files that end in {', '.join(_SUFFIXES)}")
    words = {file: re.split(r"[^a-z0-9]+", str(file.relative_to(folder)).lower()) for file in files}
    found = [name for name in _SPLITS if any(name in parts for parts in words.values())]
    wanted = split or (TRAIN if len(found) > 1 else None)
    if wanted is None:
        return files
    chosen = [file for file in files if wanted.lower() in words[file]]
    if not chosen:
        raise LokiError(_no_split(what, str(folder), wanted, found))
    return chosen


def _csv(path: Path, delimiter: str, what: str) -> Iterator[Located]:
    text = read_text(path, what=what)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(lines, [])
        if len(set(header)) < len(header):
            raise LokiError(f"{what} {path} names a column twice in its header: {', '.join(header)}")
        for line in lines:
            if not line:
                continue
            where = f"{path}, line {lines.line_num}"
            if len(line) != len(header):
                raise LokiError(f"{what} {where}: {len(line)} fields for the columns {', '.join(header)}")
            yield where, dict(zip(header, line, strict=True))
    except csv.Error as error:
        raise LokiError(f"{what} {path}, line {lines.line_num}: no CSV ({error})") from error


def _load_table(path: Path, what: str) -> Any:
    from datasets import Dataset

    require_file(path, what)
    with reading(what, path):
        read = Dataset.from_parquet if _suffix(path) == ".parquet" else Dataset.from_file
        return read(str(path))


def _saved_dataset(path: Path, source: Source, what: str) -> Iterator[Located]:
    from datasets import DatasetDict, load_from_disk

    with reading(what, path, problem="cannot be read as a save_to_disk folder"):
        saved = load_from_disk(str(path))
    if isinstance(saved, DatasetDict):
        split = source.split or (TRAIN if len(saved) > 1 else next(iter(saved)))
        if split not in saved:
            raise LokiError(_no_split(what, str(path), split, list(saved)))
        saved = saved[split]
    yield from _rows(saved, str(path), what)


def _hub_dataset(source: Source, what: str) -> Iterator[Located]:
    from datasets import load_dataset

    name = source.location
    local = Path(name).parent.is_dir() or _suffix(Path(name)) in _SUFFIXES
    if local or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise LokiError(f"{what} {name} does not exist: check the path")
    split = source.split or TRAIN
    problem = "is neither a local path nor a hub data set that can be fetched now"
    advice = "check the name, --data-split, --data-subset and the network"
    name_with_part = f"{name} (split {split}, subset {source.subset or 'default'})"
    with reading(what, name_with_part, problem=problem, advice=advice):
        data = load_dataset(name, source.subset, split=split)
    yield from _rows(data, name, what)


def _rows(data: Any, name: str, what: str) -> Iterator[Located]:
    rows = iter(data)
    number = 0
    while True:
        number += 1
        where = f"{name}, record {number}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise LokiError(f"{what} {where} cannot be read ({_short(error)})") from error
        try:
            check_depth(row)
            check_unicode(row)
        except LokiError as error:
            raise LokiError(f"{what} {where}: {error}") from error
        yield where, without_nulls(row)


def without_nulls(value: Any) -> Any:
    """The value without the fields that are null, at every depth: a table gives all rows the fields of all others."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _no_split(what: str, name: str, split: str, found: list[str]) -> str:
    return f"{what} {name} has no split {split}: choose one with --data-split ({', '.join(found) or 'it has none'})"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
