"""Edits of valid files: Hypothesis strategies, each of an edit that can say what it does."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Edit:
    """A change of one file.

    Attributes:
        what: in words, for reports.
        apply: makes it, given the file's path.
    """

    what: str
    apply: Callable[[Path], None]


def deep(depth: int) -> list[Any]:
    """A list in a list in a list, and so on."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.5, 0.0, 2**15, 2**31, 2**40, 2**63, 2**64, 10**30, -(2**63)),
    *(float("nan"), float("inf"), float("-inf"), 1e308, 1e-320),
    *(
        "",
        "x",
        "0",
        "1",
        "nan",
        "auto",
        "../base",
        "/etc/passwd",
        "/dev/zero",
        "\0",
        "\ud800",
        "é" * 300,
        "a" * 100_000,
    ),
    *([], {}, [[]], [0], [1, 2], ["x"], [None], {"x": 1}, {"": None}, {"type": "x"}, [1.5, "x", None]),
    deep(60),
]

hostile_values = st.sampled_from(HOSTILE_VALUES) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def shown(value: Any) -> str:
    """A value for reports."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


def places(value: Any, path: tuple[Any, ...] = (), limit: int = 3) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value; of long lists only the first entries."""
    found = [path] if path else []
    if isinstance(value, dict):
        inner: Any = list(value.items())[:400]
    elif isinstance(value, list):
        inner = list(enumerate(value))[:limit]
    else:
        return found
    for key, entry in inner:
        found += places(entry, (*path, key), limit)
    return found


def replaced(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of a JSON value, with `change(container, key)` called at `path`."""
    copy = json.loads(json.dumps(value))
    container = copy
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return copy


def json_value(path: tuple[Any, ...], value: Any) -> Edit:
    """Put `value` at `path` of a JSON file (added where it is not there; an empty path is the whole)."""

    def apply(file: Path) -> None:
        old = json.loads(file.read_text())
        new = replaced(old, path, lambda container, key: container.__setitem__(key, value)) if path else value
        file.write_text(json.dumps(new), encoding="utf-8", errors="surrogatepass")

    return Edit(f"{'.'.join(map(str, path)) or 'all'} = {shown(value)}", apply)


def json_without(path: tuple[Any, ...]) -> Edit:
    """Remove what stands at `path` of a JSON file."""

    def apply(file: Path) -> None:
        old = json.loads(file.read_text())
        file.write_text(json.dumps(replaced(old, path, lambda container, key: container.__delitem__(key))))

    return Edit(f"without {'.'.join(map(str, path))}", apply)


def content(what: str, data: bytes) -> Edit:
    """Replace all that a file holds."""
    return Edit(what, lambda file: file.write_bytes(data) and None)


def damage(what: str, change: Callable[[bytes], bytes]) -> Edit:
    """Change a file's bytes."""
    return Edit(what, lambda file: file.write_bytes(change(file.read_bytes())) and None)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 2200119864\n"

CONTENTS = [
    content("empty", b""),
    content("one byte", b"{"),
    content("null", b"null"),
    content("zeros", bytes(4096)),
    content("not UTF-8", b'{"a": "\xff\xfe"}'),
    content("UTF-16", '{"a": 1}'.encode("utf-16")),
    content("deep nesting", b"[" * 100_000),
    content("deep objects", b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    content("a number of 10,000 digits", b"1" * 10_000),
    content("a Git LFS pointer", LFS_POINTER),
    content("HTML", b"<!DOCTYPE html><html><body>404</body></html>"),
    content("a pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01K\x02e."),
    content("a zip", b"PK\x03\x04" + bytes(100)),
]


def _link_to(target: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        _remove(path)
        path.symlink_to(target)

    return apply


def _pipe(path: Path) -> None:
    import os

    _remove(path)
    os.mkfifo(path)


def _folder(path: Path) -> None:
    _remove(path)
    path.mkdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _large(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**36)  # takes no space on disk


PLACES = [
    Edit("a folder in its place", _folder),
    Edit("a link to nowhere", _link_to("nowhere/at/all")),
    Edit("a link to itself", lambda path: _link_to(path.name)(path)),
    Edit("a link to /dev/zero", _link_to("/dev/zero")),
    Edit("a link to /dev/null", _link_to("/dev/null")),
    Edit("a pipe", _pipe),
    Edit("missing", _remove),
    Edit("64 GiB, mostly a hole", _large),
]


@st.composite
def byte_edits(draw: st.DrawFn, size: int) -> Edit:
    """Bit flips, truncation, insertion and repetition in a file of `size` bytes."""
    place = draw(st.integers(0, max(0, size - 1)) | st.integers(0, min(size - 1, 600)))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "repeat"]))
    if kind == "flip":
        bit = draw(st.integers(0, 7))
        return damage(
            f"bit {bit} of byte {place} flipped",
            lambda data: data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :],
        )
    if kind == "cut":
        return damage(f"cut after {place} bytes", lambda data: data[:place])
    filling = draw(st.binary(min_size=1, max_size=16) | st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7]))
    if kind == "insert":
        return damage(f"{filling!r} inserted at {place}", lambda data: data[:place] + filling + data[place:])
    if kind == "overwrite":
        return damage(
            f"{filling!r} written at {place}", lambda data: data[:place] + filling + data[place + len(filling) :]
        )
    return damage(f"repeated from {place}", lambda data: data + data[place:])


@st.composite
def json_edits(draw: st.DrawFn, original: Path, more: tuple[str, ...] = ()) -> Edit:
    """Edits of a JSON file: values of other types and sizes, missing entries, other contents.

    Args:
        draw: Hypothesis's.
        original: the valid file.
        more: top-level entries that it could have.
    """
    value = json.loads(original.read_text())
    kind = draw(st.sampled_from(["value"] * 12 + ["without"] * 2 + ["content", "bytes", "place"]))
    if kind == "content":
        return draw(st.sampled_from(CONTENTS))
    if kind == "place":
        return draw(st.sampled_from(PLACES))
    if kind == "bytes":
        return draw(byte_edits(original.stat().st_size))
    # The outermost entries first: what is deep inside a long list of numbers matters less.
    paths = [(name,) for name in more] if isinstance(value, dict) else []
    every = places(value)
    shallow = [path for path in every if len(path) == 1]
    if kind == "without":
        return json_without(draw(st.sampled_from(shallow) | st.sampled_from(every)))
    return json_value(
        draw(st.sampled_from([*shallow, *paths]) | st.sampled_from(every) | st.just(())), draw(hostile_values)
    )
