"""What cannot be read is refused in one line that says what and why."""

import json
import os
import struct
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from safetensors.torch import save_file

from loki.errors import LokiError
from loki.inputs import Strict, checked, read_json, read_text, reading, require_file, safetensors_header
from loki.inputs.json_text import MAX_DEPTH
from tests.hostile.edits import LFS_POINTER, deep


class Wanted(Strict):
    rank: Annotated[int, Field(ge=1)] | None = None
    names: list[str] | None = None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\nlines"), "two lines"),
        (KeyError("rows"), "KeyError: 'rows'"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (MemoryError(), "more memory than there is"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_any_error_becomes_one_line(error: Exception, reason: str) -> None:
    with pytest.raises(LokiError, match=r"^scores file a\.h5 ") as raised, reading("scores file", "a.h5"):
        raise error
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("CUDA out of memory")])
def test_what_the_file_is_not_to_blame_for_passes(error: Exception) -> None:
    with pytest.raises(type(error)), reading("scores file", "a.h5"):
        raise error


def test_places_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "pointer").write_bytes(LFS_POINTER)
    reasons = {
        "absent": "does not exist",
        "pipe": "a device or a pipe",
        "circle": "symbolic links",
        "pointer": "Git LFS pointer",
        ".": "is a directory",
        "x" * 300: "File name too long",
        "null\0": "embedded null",
    }
    for name, reason in reasons.items():
        with pytest.raises(LokiError, match=reason):
            require_file(tmp_path / name, "positions file")
    with pytest.raises(LokiError, match="pipe"):
        require_file(Path("/dev/zero"), "positions file")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"[" * 10**5, "not JSON"),
        (b"1" * 10**5, "not JSON"),
        (json.dumps(deep(MAX_DEPTH + 1)).encode(), "nested deeper"),
        (b'{"a": ["\\ud800"]}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
    ],
)
def test_json_that_would_fail_later(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(LokiError, match=reason):
        read_json(tmp_path / "a.json", what="positions file")


def test_text_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "general.txt"
    path.touch()
    os.truncate(path, 2**40)  # a hole
    with pytest.raises(LokiError, match=r"general text .* 1024\.0 GiB"):
        read_text(path, what="general text")


def test_a_header_with_very_many_tensors(tmp_path: Path) -> None:
    header = {f"x.{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(70_000)}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(LokiError, match="70,000 tensors"):
        safetensors_header(tmp_path / "x.safetensors")


def test_json_with_a_bound(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    assert read_json(tmp_path / "a.json", what="positions file", limit=6) == [1, 2]
    with pytest.raises(LokiError, match="has 6 bytes"):
        read_json(tmp_path / "a.json", what="positions file", limit=5)


@pytest.mark.parametrize(
    ("value", "named"),
    [({"rank": 0}, "rank is 0"), ({"rank": True}, "rank is True"), ({"names": ["a", 3]}, r"names\.1 is 3"), (3, "3")],
)
def test_schema_names_the_field(value: Any, named: str) -> None:
    with pytest.raises(LokiError, match=f"^adapter a: .*{named}"):
        checked(Wanted, value, "adapter a")


@given(
    st.recursive(st.none() | st.text() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_whatever_is_wrong_takes_one_line(value: Any) -> None:
    try:
        checked(Wanted, {"rank": value, "names": value}, "adapter a")
    except LokiError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 500


def test_header_of_a_valid_file(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(0, 4, dtype=torch.bfloat16), "c": torch.tensor(1)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = safetensors_header(tmp_path / "a.safetensors")
    assert {name: (entry.dtype, entry.shape) for name, entry in found.items()} == {
        "a": ("F32", [2, 3]),
        "b": ("BF16", [0, 4]),
        "c": ("I64", []),
    }


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ([], "list as header"),
        ({"a": 3}, "a is 3"),
        ({"a": {**ENTRY, "dtype": "F3"}}, r"a\.dtype is 'F3'"),
        ({"a": {**ENTRY, "shape": [-1]}}, r"a\.shape\.0 is -1"),
        ({"a": {**ENTRY, "shape": [2**40]}}, "at bytes 0 to 4"),
        ({"a": {**ENTRY, "data_offsets": [0, 8]}}, "at bytes 0 to 8"),
        ({"a": {**ENTRY, "shape": [2], "data_offsets": [0, 8]}}, "4 bytes are missing"),
        ({"a": ENTRY, "b": ENTRY}, "tensor b"),
        ({}, "4 bytes too many"),
        ({"a": ENTRY, "__metadata__": {"format": 1}}, "format is 1"),
    ],
)
def test_headers_that_contradict_themselves(header: object, reason: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(LokiError, match=f"truncated .*{reason}"):
        safetensors_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**62) + b"{}", b"PK\x03\x04" + bytes(100)])
def test_files_that_are_no_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(LokiError, match="truncated or damaged"):
        safetensors_header(tmp_path / "a.safetensors")
