"""Second moments of what goes into every `down_proj`: which input directions a model uses, and how much.

A safetensors file with two tensors per layer: `second_moment.3` `[blocks, n, n]`, the mean over tokens of `h h^T` for
each block of `n` neighbouring inputs, and `mean_square.3` `[blocks * n]`, its diagonal. Where the input is no wider
than a block there is one block, the whole second moment. What lies between two blocks is not kept: the whole matrix of
a 14,336 wide input takes 822 MB per layer, its seven blocks take 117 MB.

Where the model normalises the MLP's output z, a token counts as `h h^T / mean(z^2)`: see
`loki.analysis.moments.measure_moments`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file

from loki.errors import LokiError
from loki.files import atomic_file
from loki.inputs import TensorEntry, check_fields, checked, reading, safetensors_header, shown
from loki.inputs.json_text import parse_json

FORMAT = "loki-moments"
VERSION = 1
_WHAT = "moments file"
_ADVICE = "measure it again with `loki moments`"


@dataclass(frozen=True)
class MomentsOrigin:
    """What second moments were measured on.

    Attributes:
        model: the model as the user named it.
        model_fingerprint: hash of its weights, see `loki.models.checkpoint.fingerprint`.
        source: the calibration data as the user named it.
        source_digest: SHA-256 over the texts' token ids.
        texts: number of texts.
        tokens: number of tokens that the means are over.
        dtype: type the model computed in; the sums are float32.
        loki_version: of this package.
        weighted: whether tokens are weighed by 1 / mean(z^2), with z the MLP's output, as the model normalises that.
    """

    model: str
    model_fingerprint: str
    source: str
    source_digest: str
    texts: int
    tokens: int
    dtype: str
    loki_version: str
    weighted: bool = False


class Moments:
    """A file of second moments, read layer by layer.

    Args:
        path: the file.

    Attributes:
        path: the file.
        origin: what they were measured on.
        layers: number of layers.
        block_sizes: inputs per block of every layer.

    Raises:
        LokiError: if the file is missing, damaged, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        entries = safetensors_header(path, what=_WHAT, advice=_ADVICE)
        with reading(_WHAT, path, advice=_ADVICE), safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise LokiError(f"{path} holds no second moments: name a file made by `loki moments`")
        if header.get("version") != str(VERSION):
            raise LokiError(f"{_WHAT} {path} has version {shown(header.get('version'))}, not {VERSION}: {_ADVICE}")
        try:
            origin = parse_json(header.get("origin", ""))
        except LokiError as error:
            raise LokiError(f"{_WHAT} {path}: its origin is {error}: {_ADVICE}") from error
        self.origin = _checked_origin(origin, f"{_WHAT} {path}")
        self.layers = (len(entries) + 1) // 2
        self.block_sizes = [self._check(entries, layer) for layer in range(self.layers)]

    def _check(self, entries: Mapping[str, TensorEntry], layer: int) -> int:
        """The inputs per block."""
        names = (f"second_moment.{layer}", f"mean_square.{layer}")
        for name in names:
            if name not in entries:
                raise LokiError(f"{_WHAT} {self.path} holds {self.layers} layers and no {name}: {_ADVICE}")
        moment, squares = (entries[name] for name in names)
        square = len(moment.shape) == 3 and moment.shape[1] == moment.shape[2] and moment.elements > 0
        if (moment.dtype, squares.dtype) != ("F32", "F32") or not square or squares.shape != [prod(moment.shape[:2])]:
            raise LokiError(
                f"{_WHAT} {self.path}: {names[0]} is {moment.dtype} {moment.shape} and {names[1]} {squares.dtype} "
                f"{squares.shape}: {_ADVICE}"
            )
        return moment.shape[-1]

    def second_moment(self, layer: int) -> torch.Tensor:
        """`[blocks, n, n]` float32 of one layer.

        Raises:
            LokiError: if a value is NaN or infinite.
        """
        return self._tensor(f"second_moment.{layer}")

    def mean_square(self, layer: int) -> torch.Tensor:
        """`[d_ff]` float32: the mean square of every input of one layer.

        Raises:
            LokiError: if a value is NaN or infinite.
        """
        return self._tensor(f"mean_square.{layer}")

    def _tensor(self, name: str) -> torch.Tensor:
        if int(name.rpartition(".")[2]) >= self.layers:
            raise LokiError(f"{_WHAT} {self.path} holds {self.layers} layers and no {name}: it is of another model")
        with reading(_WHAT, self.path, advice=_ADVICE), safe_open(self.path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        if not tensor.isfinite().all():
            raise LokiError(f"{_WHAT} {self.path}: {name} holds NaN or infinite values: measure it in float32")
        return tensor


def _checked_origin(value: Any, where: str) -> MomentsOrigin:
    found = checked(TypeAdapter(dict[str, Any]), value, where, advice=_ADVICE)
    own = fields(MomentsOrigin)
    if absent := [field.name for field in own if field.default is MISSING and field.name not in found]:
        raise LokiError(f"{where} does not say its {absent[0]}: {_ADVICE}")
    check_fields(MomentsOrigin, found, where, advice=_ADVICE)
    return MomentsOrigin(**{field.name: found[field.name] for field in own if field.name in found})


def write_moments(
    path: Path, second_moments: Sequence[torch.Tensor], origin: MomentsOrigin, *, overwrite: bool = False
) -> None:
    """Write second moments, atomically.

    Args:
        path: file to write.
        second_moments: `[blocks, n, n]` of every layer.
        origin: what they were measured on.
        overwrite: replace a file that exists.

    Raises:
        LokiError: if `path` exists and `overwrite` is False, or a value is NaN or infinite.
    """
    tensors = {}
    for layer, moment in enumerate(second_moments):
        if not moment.isfinite().all():
            raise LokiError(f"the second moment of layer {layer} holds NaN or infinite values: use --dtype float32")
        tensors[f"second_moment.{layer}"] = moment.to(torch.float32).contiguous()
        diagonal = moment.diagonal(dim1=-2, dim2=-1).to(torch.float32).flatten()
        tensors[f"mean_square.{layer}"] = diagonal.clone()  # of a single value it shares the memory
    header = {"format": FORMAT, "version": str(VERSION), "origin": json.dumps(asdict(origin))}
    with atomic_file(path, overwrite=overwrite) as temporary:
        save_file(tensors, temporary, metadata=header)
