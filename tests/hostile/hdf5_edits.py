"""Edits of scores files: datasets, attributes and links of other kinds and sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

from tests.hostile.edits import CONTENTS, PLACES, Edit, byte_edits, shown

COLUMNS = ("sample_ids", "sample_digests", "subjects", "target_token_ids", "target_probabilities", "completeness")
NAMES = ("dataset", "expert_scores", *COLUMNS)
ATTRIBUTES = (
    *("model", "model_fingerprint", "definition", "steps", "ig_method", "engine", "quantity", "absolute", "position"),
    *("per_expert", "dtype", "source", "source_digest", "versions", "config_digest", "stopping", "samples_done"),
)
_VALUES: list[Any] = [
    *("", "x", "{", "[]", "null", "{}", '{"a": [1]}', '{"a": NaN}', "é" * 300, "a" * 50_000, 0, -1, 7, 2**62, 1.5),
    *(np.nan, np.inf, True, b"\xff\xfe", np.bytes_(b"\xff"), np.array([]), np.array([1, 2]), np.zeros((2, 2))),
    *(np.complex64(1j), np.float16(1), np.uint64(2**64 - 1), h5py.Empty("f"), h5py.Empty(h5py.string_dtype())),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
]


def hdf5_edit(what: str, change: Callable[[h5py.File], object]) -> Edit:
    """Change an HDF5 file with h5py."""

    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return Edit(what, apply)


def attribute(name: str, value: Any) -> Edit:
    """Give an attribute another value."""
    return hdf5_edit(f"attribute {name} = {shown(value)}", lambda file: file.attrs.__setitem__(name, value))


def without_attribute(name: str) -> Edit:
    """Remove an attribute."""
    return hdf5_edit(f"without attribute {name}", lambda file: file.attrs.pop(name, None))


def instead(name: str, what: str, make: Callable[[h5py.File, str], object]) -> Edit:
    """Put something else where the dataset `name` is."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        make(file, name)

    return hdf5_edit(f"{name}: {what}", change)


def _declared(shape: tuple[int, ...], dtype: Any = np.float32) -> Callable[[h5py.File, str], object]:
    """A dataset of any size, of which nothing is stored."""
    chunks = tuple(min(size, 64) for size in shape) if shape and all(shape) else None
    return lambda file, name: file.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks)


def _virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout(shape=(4, 3, 32), dtype=np.float32)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "dataset", shape=(4, 3, 32))
    file.create_virtual_dataset(name, layout)


def _compound(file: h5py.File, name: str) -> None:
    file.create_dataset(name, data=np.zeros(4, dtype=[("a", "i4"), ("b", "f4")]))


def _reference(file: h5py.File, name: str) -> None:
    file.create_dataset(name, data=np.array([file.ref] * 4, dtype=h5py.ref_dtype))


def _bomb(file: h5py.File, name: str) -> None:
    """A few hundred kilobytes of zeros that become 2 GiB."""
    dataset = file.create_dataset(
        name, shape=(2**14, 32, 1024), dtype=np.float32, chunks=(2**11, 32, 1024), compression="gzip"
    )
    import zlib

    dataset.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(2**28), 9))


REPLACEMENTS: dict[str, Callable[[h5py.File, str], object]] = {
    "a group": lambda file, name: file.create_group(name),
    "missing": lambda file, name: None,
    "a link to itself": lambda file, name: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
    "a link to nothing": lambda file, name: file.__setitem__(name, h5py.SoftLink("/nothing")),
    "a link to the root": lambda file, name: file.__setitem__(name, h5py.SoftLink("/")),
    "a link in a circle": lambda file, name: (
        file.__setitem__(name, h5py.SoftLink("/circle")),
        file.__setitem__("circle", h5py.SoftLink(f"/{name}")),
    ),
    "a link to a missing file": lambda file, name: file.__setitem__(name, h5py.ExternalLink("no.h5", "/dataset")),
    "a link to another file": lambda file, name: file.__setitem__(name, h5py.ExternalLink("more.h5", f"/{name}")),
    "a link to /dev/zero": lambda file, name: file.__setitem__(name, h5py.ExternalLink("/dev/zero", "/dataset")),
    "a type": lambda file, name: file.__setitem__(name, np.dtype("f4")),
    "no samples": _declared((0, 3, 32)),
    "no layers": _declared((4, 0, 32)),
    "no rows": _declared((4, 3, 0)),
    "a scalar": lambda file, name: file.create_dataset(name, data=1.0),
    "an empty space": lambda file, name: file.create_dataset(name, data=h5py.Empty("f")),
    "numbers": lambda file, name: file.create_dataset(name, data=np.arange(4)),
    "fractions": lambda file, name: file.create_dataset(name, data=np.full(4, 0.5)),
    "not a number": lambda file, name: file.create_dataset(name, data=np.full(4, np.nan)),
    "texts": lambda file, name: file.create_dataset(name, data=["a", "b", "c", "d"]),
    "equal texts": lambda file, name: file.create_dataset(name, data=["a"] * 4),
    "not UTF-8": lambda file, name: file.create_dataset(name, data=np.array([b"\xff\xfe"] * 4, dtype="S2")),
    "too many": lambda file, name: file.create_dataset(name, data=np.arange(5)),
    "two axes": lambda file, name: file.create_dataset(name, data=np.zeros((4, 2))),
    "whole numbers": lambda file, name: file.create_dataset(name, data=np.zeros((4, 3, 32), np.int32)),
    "complex": lambda file, name: file.create_dataset(name, data=np.zeros((4, 3, 32), np.complex64)),
    "float64": lambda file, name: file.create_dataset(name, data=np.zeros((4, 3, 32))),
    "1e300": lambda file, name: file.create_dataset(name, data=np.full((4, 3, 32), 1e300)),
    "NaN": lambda file, name: file.create_dataset(name, data=np.full((4, 3, 32), np.nan, np.float32)),
    "2**40 samples": _declared((2**40, 3, 32)),
    "2**40 layers": _declared((4, 2**40, 32)),
    "2**40 rows": _declared((4, 3, 2**40)),
    "2**20 layers, 2**20 rows": _declared((4, 2**20, 2**20)),
    "10**7 samples": _declared((10**7, 3, 32)),
    "2**40 numbers": _declared((2**40,), np.int64),
    "2**40 texts": _declared((2**40,), h5py.string_dtype()),
    "other layers": _declared((4, 2, 32)),
    "a compound type": _compound,
    "references": _reference,
    "virtual": _virtual,
    "compressed 2 GiB": _bomb,
}


@st.composite
def hdf5_edits(draw: st.DrawFn, original: Path) -> Edit:
    """Edits of a scores file."""
    kind = draw(st.sampled_from(["dataset"] * 8 + ["attribute"] * 6 + ["bytes"] * 5 + ["content", "place"]))
    if kind == "content":
        return draw(st.sampled_from(CONTENTS))
    if kind == "place":
        return draw(st.sampled_from(PLACES))
    if kind == "bytes":
        return draw(byte_edits(original.stat().st_size))
    if kind == "attribute":
        name = draw(st.sampled_from(ATTRIBUTES))
        return draw(
            st.just(without_attribute(name)) | st.sampled_from(_VALUES).map(lambda value: attribute(name, value))
        )
    name = draw(st.sampled_from(NAMES + ("dataset",) * 3))
    what = draw(st.sampled_from(sorted(REPLACEMENTS)))
    return instead(name, what, REPLACEMENTS[what])
