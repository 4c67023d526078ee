"""The base model's weight under an adapter: whether its rows can be read, and what identifies them."""

import re
from collections.abc import Iterable
from typing import TypeAlias

import torch
import xxhash
from torch import nn

from loki.models.checkpoint import PLAIN_DTYPES

_COLUMNS = 64

Selected: TypeAlias = list[tuple[int | str, list[int], torch.Tensor]]
"""Layer, row indices and matrix `[D, d_ff]` of whatever holds selected rows; `3|7` is expert 7 of layer 3."""


def plain_weight(layer: nn.Module) -> torch.Tensor | None:
    """The weight `[out_features, in_features]` of `layer` where it is an ordinary floating-point tensor, else None.

    Quantised, sharded and not yet loaded (meta) weights are not ordinary.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or not isinstance(layer, nn.Linear):
        return None
    data = plain_tensor(weight)
    # bitsandbytes packs 4-bit weights into tensors of another shape, whose dtype may be a floating one.
    return data if data is not None and data.shape == (layer.out_features, layer.in_features) else None


def plain_tensor(tensor: torch.Tensor) -> torch.Tensor | None:
    """The data of a parameter where it is an ordinary floating-point tensor, else None."""
    data = tensor.data
    return None if type(data) is not torch.Tensor or data.is_meta or data.dtype not in PLAIN_DTYPES else data


def rows_of_weight(
    layer: int, rows: list[int], weight: torch.Tensor, axis: int = 0, *, expert: int | None = None
) -> Selected:
    """What `base_fingerprint` takes of one weight: a matrix, or one for each expert that it holds.

    Args:
        layer: layer index.
        rows: row indices.
        weight: a matrix, or those of all experts `[E, ...]`.
        axis: the dimension of it that rows lie along.
        expert: the expert whose matrix it is, where it is that of one.
    """
    if weight.dim() == 2:
        return [(layer if expert is None else f"{layer}|{expert}", rows, weight.movedim(axis, 0)[:, :_COLUMNS])]
    parts = enumerate(weight)
    return [part for number, one in parts for part in rows_of_weight(layer, rows, one, axis - 1, expert=number)]


def base_fingerprint(selected: Iterable[tuple[int | str, list[int], torch.Tensor]], *, exact: bool = False) -> str:
    """What tells a base model from another by its selected rows: `DTYPE:HEX`.

    The 64-bit hashes of the rows (layer, index and the first 64 values, in bfloat16) are summed, so that the sum over
    disjoint sets of rows is the sum of their fingerprints, and the same base in float32 or bfloat16 has the same one.
    Costs well under a second for an 8B model.

    Args:
        selected: layer index, row indices, and the weight `[D, d_ff]` for each layer, see `rows_of_weight`.
        exact: hash the values as they are, not rounded to bfloat16: another precision of the base is another base.
    """
    total = 0
    dtype = torch.float32
    for layer, rows, weight in selected:
        dtype = weight.dtype
        wanted = torch.float32 if exact else torch.bfloat16
        values = weight[rows, :_COLUMNS].detach().to("cpu", wanted).contiguous().view(torch.uint8).numpy()
        for row, row_values in zip(rows, values, strict=True):
            total += xxhash.xxh3_64_intdigest(f"{layer}|{row}|".encode() + row_values.tobytes())
    return f"{str(dtype).removeprefix('torch.')}:{total % 2**64:016x}"


def is_fingerprint(value: str) -> bool:
    """Whether `value` has the form of what `base_fingerprint` returns."""
    return re.fullmatch(r"(float64|float32|bfloat16|float16):[0-9a-f]{16}", value) is not None


def same_base(first: str, second: str) -> bool:
    """Whether two fingerprints of the same rows can come from the same base.

    float16 rounds differently from bfloat16, so a fingerprint of a float16 model tells nothing about the others.
    """
    (first_dtype, first_sum), (second_dtype, second_sum) = first.split(":"), second.split(":")
    comparable = (first_dtype == "float16") == (second_dtype == "float16")
    return first_sum == second_sum or not comparable


def sum_fingerprints(fingerprints: list[str | None], *, exact: bool = False) -> str | None:
    """The fingerprint of the union of disjoint sets of rows; None if one is unknown or they cannot be compared."""
    parts = [fingerprint.split(":") for fingerprint in fingerprints if fingerprint]
    kinds = {dtype if exact else dtype == "float16" for dtype, _ in parts}
    if len(parts) < len(fingerprints) or len(kinds) > 1:
        return None
    return f"{parts[0][0]}:{sum(int(value, 16) for _, value in parts) % 2**64:016x}"
