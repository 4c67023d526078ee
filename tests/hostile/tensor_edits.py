"""Edits of safetensors files: their header, and tensors of other types and shapes."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.hostile.edits import CONTENTS, PLACES, Edit, byte_edits, hostile_values, shown

_DTYPES = ["F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I64", "I8", "U8", "BOOL", "C64", "x", "", None]
_SHAPES: list[Any] = [
    *([], [0], [-1], [2**63], [2**64], [2**32, 2**32], [1.5], ["x"], None, "x", 3, [1] * 70, [0, 2**62], [[1]], {}),
]
_OFFSETS: list[Any] = [
    *(
        [0, 0],
        [-1, 4],
        [4, 0],
        [0, 2**63],
        [2**63, 2**64],
        [0, 2**70],
        [0],
        [],
        None,
        "x",
        [0.5, 4],
        ["a", "b"],
        [1, 5],
    ),
]


def header_edit(what: str, change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Change the header; the data stay as they are."""

    def apply(path: Path) -> None:
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        changed = change(header)
        text = json.dumps(header if changed is None else changed).encode("utf-8", "surrogatepass")
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return Edit(what, apply)


def tensor_edit(what: str, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Edit:
    """Save the file again with another value of the tensor whose name holds `name`; without it for None."""

    def apply(path: Path) -> None:
        tensors = load_file(path)
        found = next((key for key in tensors if name in key), next(iter(tensors)))
        changed = change(tensors.pop(found))
        if changed is not None:
            tensors[found] = changed.contiguous()
        save_file(tensors, path, metadata={"format": "pt"})

    return Edit(f"{name}: {what}", apply)


def declared_header_size(size: int) -> Edit:
    """Let the file say that its header has `size` bytes."""
    return Edit(
        f"header of {size} bytes",
        lambda path: path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:]) and None,
    )


CONVERSIONS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "float8 e5m2": lambda tensor: tensor.to(torch.float8_e5m2),
    "float16": lambda tensor: tensor.half(),
    "float64": lambda tensor: tensor.double(),
    "int8": lambda tensor: tensor.to(torch.int8),
    "uint8": lambda tensor: tensor.to(torch.uint8),
    "bool": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "no element": lambda tensor: tensor[:0],
    "no column": lambda tensor: tensor[..., :0],
    "a scalar": lambda tensor: tensor.flatten()[0],
    "one axis": lambda tensor: tensor.flatten(),
    "three axes": lambda tensor: tensor[None],
    "transposed": lambda tensor: tensor.T if tensor.ndim == 2 else tensor,
    "half the rows": lambda tensor: tensor[: max(1, len(tensor) // 2)],
    "twice the rows": lambda tensor: torch.cat([tensor, tensor]),
    "NaN": lambda tensor: tensor * float("nan"),
    "infinite": lambda tensor: tensor + float("inf"),
    "one NaN": lambda tensor: tensor.flatten().index_fill(0, torch.tensor([0]), float("nan")).reshape(tensor.shape),
    "missing": lambda tensor: None,
}


@st.composite
def tensor_edits(draw: st.DrawFn, original: Path, names: tuple[str, ...]) -> Edit:
    """Edits of a safetensors file.

    Args:
        draw: Hypothesis's.
        original: the valid file.
        names: parts of names of tensors whose values are worth changing.
    """
    kind = draw(st.sampled_from(["entry"] * 5 + ["tensor"] * 5 + ["header"] * 2 + ["bytes"] * 3 + ["content", "place"]))
    if kind == "content":
        return draw(st.sampled_from(CONTENTS))
    if kind == "place":
        return draw(st.sampled_from(PLACES))
    if kind == "bytes":
        return draw(byte_edits(original.stat().st_size))
    if kind == "tensor":
        what = draw(st.sampled_from(sorted(CONVERSIONS)))
        return tensor_edit(what, draw(st.sampled_from(names)), CONVERSIONS[what])
    with original.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        keys = [key for key in json.loads(file.read(size)) if key != "__metadata__"]
    key = draw(st.sampled_from(keys))
    if kind == "header":
        return draw(
            st.sampled_from(
                [
                    *(
                        declared_header_size(size)
                        for size in (0, 1, 2**20, 2**40, 2**63, 2**64 - 1, size - 1, size + 1)
                    ),
                    header_edit("no tensors", lambda header: {}),
                    header_edit("a list", lambda header: [header]),
                    header_edit("100,000 tensors", lambda header: {**header, **_many(100_000)}),
                    header_edit("metadata are numbers", lambda header: {**header, "__metadata__": {"format": 1}}),
                    header_edit("metadata are a list", lambda header: {**header, "__metadata__": ["pt"]}),
                    header_edit("format mlx", lambda header: {**header, "__metadata__": {"format": "mlx"}}),
                    header_edit("format x", lambda header: {**header, "__metadata__": {"format": "x"}}),
                    header_edit("no metadata", lambda header: header.pop("__metadata__", None) and None),
                ]
            )
        )
    field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "all", "name"]))
    if field == "all":
        value = draw(hostile_values)
        return header_edit(f"{key} = {shown(value)}", lambda header: {**header, key: value})
    if field == "name":
        name = draw(st.sampled_from(["", "../x", "\0", "é" * 300, "a" * 100_000, "x", "\ud800"]))
        return header_edit(f"{key} is called {shown(name)}", lambda header: {**header, name: header.pop(key)})
    own = {"dtype": _DTYPES, "shape": _SHAPES, "data_offsets": _OFFSETS}[field]
    value = draw(st.sampled_from(own) | hostile_values)
    return header_edit(
        f"{key}.{field} = {shown(value)}", lambda header: header.__setitem__(key, {**header[key], field: value})
    )


def _many(count: int) -> dict[str, Any]:
    return {f"x.{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(count)}
