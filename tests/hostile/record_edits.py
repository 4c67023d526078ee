"""Edits of data files: of single records in JSON Lines, and of the text as a whole."""

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.hostile.edits import (
    CONTENTS,
    PLACES,
    Edit,
    byte_edits,
    damage,
    deep,
    hostile_values,
    places,
    replaced,
    shown,
)

_FIELDS = ("messages", "prompt", "completion", "text", "input_ids", "labels", "weight", "train", "loss", "tools")
_FIELDS += ("question", "choices", "answer", "subject", "target", "instruction", "output", "conversations", "images")
_MESSAGES: list[Any] = [
    *([], [{}], [None], {"role": "user"}, [{"role": "user", "content": None}], [{"role": "assistant", "content": ""}]),
    [{"role": ["user"], "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\ud800"}],
    [{"role": "user", "content": [{"type": "image", "url": "/etc/passwd"}]}, {"role": "assistant", "content": "b"}],
    [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [{"function": None}]}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": float("nan")}],
    [{"role": "user", "content": deep(50)}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": "a" * 200_000}, {"role": "assistant", "content": "b"}],
]
_TOKENS: list[Any] = [[], [0], [-1], [2**31], [2**63], [2**70], [10**4], [0.5], ["x"], [None], [True], [[1]]]
_TOKENS += [[1] * 5000, [None, 3], {}]
_KINDS = ["value"] * 6 + ["field"] * 5 + ["without"] * 2 + ["text"] * 3 + ["bytes"] * 3 + ["place"]


def record_value(line: int, path: tuple[Any, ...], value: Any) -> Edit:
    """Put `value` at `path` of the record in a line, counted from 0; an empty path is the whole record."""

    def apply(file: Path) -> None:
        lines = file.read_text().splitlines()
        record = json.loads(lines[line])
        new = replaced(record, path, lambda container, key: container.__setitem__(key, value)) if path else value
        lines[line] = json.dumps(new)
        file.write_text("\n".join(lines) + "\n")

    return Edit(f"line {line}: {'.'.join(map(str, path)) or 'all'} = {shown(value)}", apply)


def record_without(line: int, path: tuple[Any, ...]) -> Edit:
    """Remove what stands at `path` of the record in a line."""

    def apply(file: Path) -> None:
        lines = file.read_text().splitlines()
        lines[line] = json.dumps(
            replaced(json.loads(lines[line]), path, lambda container, key: container.__delitem__(key))
        )
        file.write_text("\n".join(lines) + "\n")

    return Edit(f"line {line}: without {'.'.join(map(str, path))}", apply)


TEXTS = [
    damage("as one JSON array", lambda data: b"[" + b",".join(data.splitlines()) + b"]"),
    damage("an array that ends too early", lambda data: b"[" + b",".join(data.splitlines())),
    damage("a byte-order mark", lambda data: b"\xef\xbb\xbf" + data),
    damage("two marks", lambda data: b"\xef\xbb\xbf" * 2 + data),
    damage("UTF-16", lambda data: data.decode("latin-1").encode("utf-16")),
    damage("UTF-32", lambda data: data.decode("latin-1").encode("utf-32")),
    damage("Latin-1", lambda data: data + '{"text": "é"}\n'.encode("latin-1")),
    damage("CRLF", lambda data: data.replace(b"\n", b"\r\n")),
    damage("CR alone", lambda data: data.replace(b"\n", b"\r")),
    damage("NEL inside", lambda data: data.replace(b"a", "\x85\u2028".encode())),
    damage("null characters", lambda data: data.replace(b" ", b"\0")),
    damage("gzip that is none", lambda data: b"\x1f\x8b" + data),
    damage("a field twice", lambda data: data.replace(b"{", b'{"text": "a", "text": "b", ', 1)),
    damage("NaN", lambda data: data + b'{"text": NaN}\n'),
    damage("single quotes", lambda data: data.replace(b'"', b"'")),
    damage("two records in a line", lambda data: data.replace(b"\n", b"")),
    damage("a deep record", lambda data: data + b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}\n"),
    damage("a long line", lambda data: data + b'{"text": "' + b"a " * 500_000 + b'"}\n'),
    damage("20,000 lines", lambda data: data * (20_000 // max(2, data.count(b"\n")))),
]


@st.composite
def record_edits(draw: st.DrawFn, original: Path) -> Edit:
    """Edits of a JSON Lines file."""
    kind = draw(st.sampled_from(_KINDS))
    if kind == "place":
        return draw(st.sampled_from(PLACES + CONTENTS))
    if kind == "bytes":
        return draw(byte_edits(original.stat().st_size))
    if kind == "text":
        return draw(st.sampled_from(TEXTS))
    lines = original.read_text().splitlines()
    line = draw(st.integers(0, len(lines) - 1))
    paths = places(json.loads(lines[line]))
    if kind == "without":
        return record_without(line, draw(st.sampled_from(paths)))
    if kind == "field":
        value = draw(st.sampled_from(_MESSAGES) | st.sampled_from(_TOKENS) | hostile_values)
        return record_value(line, (draw(st.sampled_from(_FIELDS)),), value)
    return record_value(line, draw(st.sampled_from(paths) | st.just(())), draw(hostile_values))


@st.composite
def text_edits(draw: st.DrawFn, original: Path) -> Edit:
    """Edits of any file as bytes: texts, tables, templates, YAML."""
    kind = draw(st.sampled_from(["bytes"] * 4 + ["content", "place", "text"]))
    if kind == "bytes":
        return draw(byte_edits(original.stat().st_size))
    return draw(st.sampled_from({"content": CONTENTS, "place": PLACES, "text": TEXTS[2:12]}[kind]))


YAML = [
    b"model: !!python/object/apply:os.system ['touch attacked']\n",
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmodel: *c\n",
    b"&a [*a]\n",
    b"model: base\nmodel: base\n",
    b"model: base\ndata: train.jsonl\ncalibration: questions.jsonl\nquota: .nan\n",
    b"? {a: 1}\n: 2\n",
    b"1: 2\n",
    b"!!binary x\n",
    b"model: 2001-01-01\n",
    b"\tmodel: x\n",
]


@st.composite
def yaml_edits(draw: st.DrawFn, original: Path) -> Edit:
    """Edits of a YAML mapping: values of other types and sizes, other contents, bytes."""
    import yaml

    kind = draw(st.sampled_from(["value"] * 6 + ["text", "yaml", "without"]))
    if kind == "text":
        return draw(text_edits(original))
    if kind == "yaml":
        content = draw(st.sampled_from(YAML))
        return damage(shown(content), lambda data: content)
    paths = places(yaml.safe_load(original.read_text()))
    path, value = draw(st.sampled_from(paths)), draw(hostile_values)

    def apply(file: Path) -> None:
        def change(container: Any, key: Any) -> None:
            if kind == "value":
                container[key] = value
            else:
                del container[key]

        file.write_text(yaml.dump(replaced(yaml.safe_load(file.read_text()), path, change)))

    return Edit(f"{'.'.join(map(str, path))} {f'= {shown(value)}' if kind == 'value' else 'removed'}", apply)
