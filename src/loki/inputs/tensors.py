"""The header of a safetensors file: checked against the file's own size before a library reads it."""

import json
import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import AfterValidator, Field, TypeAdapter

from loki.errors import LokiError, one_line
from loki.inputs.places import require_file
from loki.inputs.schema import Strict, checked

# Bits per element, as the format defines them.
_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER = 100_000_000  # the format's own limit
_Size = Annotated[int, Field(ge=0, lt=2**48)]


def _known(dtype: str) -> str:
    if dtype not in _BITS:
        raise ValueError(f"should be one of {', '.join(_BITS)}")
    return dtype


class TensorEntry(Strict):
    """What a header says of one tensor.

    Attributes:
        dtype: name of its type, `BF16`.
        shape: its size along every axis.
        data_offsets: first byte, and the byte after the last, counted from the end of the header.
    """

    dtype: Annotated[str, AfterValidator(_known)]
    shape: Annotated[list[_Size], Field(max_length=16)]
    data_offsets: Annotated[list[_Size], Field(min_length=2, max_length=2)]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


_HEADER = TypeAdapter(dict[Annotated[str, Field(max_length=4096)], TensorEntry])
_METADATA = TypeAdapter(dict[str, str] | None)


_MOST_TENSORS = 2**16  # in one file; the largest models have 100,000 in more than a hundred files


def safetensors_header(
    path: Path, *, what: str = "weights file", advice: str = "fetch or save it again"
) -> Mapping[str, TensorEntry]:
    """The tensors that a safetensors file holds, by name, without reading them.

    Of a file that has not changed since, what was found before.

    Args:
        path: the file.
        what: its role, for the message.
        advice: what to do where it is missing or damaged.

    Raises:
        LokiError: if the file is missing, no safetensors file, truncated, or its header contradicts itself.
    """
    size = require_file(path, what, advice=advice)
    state = path.stat()
    return _read_header(path, size, (state.st_mtime_ns, state.st_ino), what, advice)


@lru_cache(maxsize=64)
def _read_header(
    path: Path,
    size: int,
    state: tuple[int, int],  # noqa: ARG001 - so that another file under this name is read anew
    what: str,
    advice: str,
) -> Mapping[str, TensorEntry]:
    try:
        with path.open("rb") as stream:
            (header_size,) = struct.unpack("<Q", stream.read(8))
            if header_size > min(_MAX_HEADER, size - 8):
                raise ValueError(f"a header of {header_size} bytes")
            header = json.loads(stream.read(header_size))
        if not isinstance(header, dict):
            raise ValueError(f"a JSON {type(header).__name__} as header")
    except (struct.error, ValueError, RecursionError) as error:
        reason = "it is too short" if isinstance(error, struct.error) else one_line(error)
        raise LokiError(f"{what} {path} is truncated or damaged ({reason}): {advice}") from error
    origin = f"{what} {path}"
    damaged = f"{origin} is truncated or damaged"
    checked(_METADATA, header.pop("__metadata__", None), f"{damaged} in its metadata", advice=advice)
    if len(header) > _MOST_TENSORS:
        raise LokiError(f"{origin} declares {len(header):,} tensors, more than {_MOST_TENSORS:,}: {advice}, in shards")
    tensors = checked(_HEADER, header, damaged, advice=advice)
    _check_places(tensors, size - 8 - header_size, origin, advice)
    return MappingProxyType(tensors)


def _check_places(tensors: dict[str, TensorEntry], available: int, origin: str, advice: str) -> None:
    """Check that the tensors lie one after the other and fill the file, as the format demands."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        if start != end or (stop - start) * 8 != entry.elements * _BITS[entry.dtype]:
            raise LokiError(
                f"{origin} is truncated or damaged (tensor {name[:200]} of {entry.dtype} {entry.shape} "
                f"at bytes {start} to {stop}): {advice}"
            )
        end = stop
    if end != available:
        raise LokiError(
            f"{origin} is truncated or damaged ({abs(end - available)} bytes "
            f"{'are missing' if end > available else 'too many'}): {advice}"
        )
