"""Reading safetensors checkpoints tensor by tensor, without loading a whole model."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open

from loki.errors import LokiError
from loki.inputs import TensorEntry, checked, read_json, reading, safetensors_header
from loki.models.config_schema import WeightIndex
from loki.models.experts import RowTensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_ADVICE = "fetch or save the model again"
# Types whose stored values are the model's own; packed and scaled ones (int8, float8) are not.
PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Checkpoint:
    """The tensors of a model directory, read lazily from its safetensors shards.

    Args:
        directory: a model directory with `model.safetensors` or a sharded set with its index.
        shards: files to read, checked before; None takes those that Transformers would load.

    Raises:
        LokiError: if there are no safetensors weights, or a shard is missing or truncated.
    """

    def __init__(self, directory: Path, shards: list[Path] | None = None) -> None:
        self.directory = directory
        shards = check_weights(directory) if shards is None else shards
        self._shards = {name: shard for shard in shards for name in tensor_names(shard)}
        self._opened: dict[Path, Any] = {}

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._shards)

    def __contains__(self, name: str) -> bool:
        return name in self._shards

    def require(self, names: Iterable[str]) -> None:
        """Check that tensors are there.

        Raises:
            LokiError: names the first that is not.
        """
        missing = next((name for name in names if name not in self._shards), None)
        if missing is not None:
            raise LokiError(f"{self.directory} has no tensor {missing}: it is not a checkpoint of this model")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it.

        Raises:
            LokiError: if there is no such tensor.
        """
        self.require([name])
        return tuple(self._open(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type of one tensor.

        Raises:
            LokiError: if there is no such tensor.
        """
        self.require([name])
        shard = self._open(name)
        view = shard.get_slice(name)
        # An empty slice has the type and costs nothing; a scalar cannot be sliced.
        tensor: torch.Tensor = view[:0] if view.get_shape() else shard.get_tensor(name)
        return tensor.dtype

    def check_shapes(self, tensors: Iterable[RowTensor]) -> None:
        """Check that tensors with rows are as large as the configuration says.

        Raises:
            LokiError: names the first that is missing or of another shape.
        """
        for tensor in tensors:
            stored = self.shape(tensor.name)
            if stored != tensor.shape:
                raise LokiError(
                    f"{self.directory}: {tensor.name} is {list(stored)}, and {list(tensor.shape)} by the "
                    f"configuration: {_ADVICE}"
                )

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, read now, on the CPU.

        Raises:
            LokiError: if there is no such tensor.
        """
        self.require([name])
        with reading("weights file", self._shards[name], advice=_ADVICE, silent=True):
            tensor: torch.Tensor = self._open(name).get_tensor(name)
            return tensor

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors by name, one at a time."""
        for name in self.names():
            yield name, self.tensor(name)

    def _open(self, name: str) -> Any:
        """The file that holds a tensor; opened once, since every opening reads its whole header."""
        path = self._shards[name]
        if path not in self._opened:
            self._opened[path] = safe_open(path, framework="pt")
        return self._opened[path]


def check_weights(directory: Path) -> list[Path]:
    """The safetensors shards of a model directory, each checked to be whole.

    Raises:
        LokiError: if there are none, one that the index names is missing, or one is truncated.
    """
    return _checked(
        directory, *_indexed_shards(directory) if is_sharded(directory) else ([directory / SINGLE_NAME], {})
    )


def is_sharded(directory: Path) -> bool:
    """Whether the weights are those of a sharded set; Transformers prefers a single file beside one."""
    return (directory / INDEX_NAME).is_file() and not (directory / SINGLE_NAME).is_file()


def shards_beside_single_file(directory: Path) -> Checkpoint | None:
    """The sharded set beside a single file, which hides it; None where there are not both.

    Raises:
        LokiError: if a shard is missing or truncated.
    """
    if not (directory / INDEX_NAME).is_file() or not (directory / SINGLE_NAME).is_file():
        return None
    return Checkpoint(directory, _checked(directory, *_indexed_shards(directory)))


def _indexed_shards(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that the index names, and which tensors it says are in which."""
    value = read_json(directory / INDEX_NAME, what="weight index")
    index = checked(WeightIndex, value, f"weight index {directory / INDEX_NAME}", advice=_ADVICE)
    return [directory / name for name in sorted(set(index.weight_map.values()))], index.weight_map


def _checked(directory: Path, shards: list[Path], weight_map: dict[str, str]) -> list[Path]:
    for shard in shards:
        if not shard.exists():
            raise LokiError(
                f"{directory} has no {shard.name}: LoKI reads safetensors only "
                "(save the model with save_pretrained, or finish the download)"
            )
        found = safetensors_header(shard, advice=_ADVICE)
        missing = next((name for name, file in weight_map.items() if file == shard.name and name not in found), None)
        if missing is not None:
            index = directory / INDEX_NAME
            raise LokiError(f"{index} says that {shard.name} holds {missing[:200]}, which it does not: {_ADVICE}")
        with reading("weights file", shard, advice=_ADVICE):
            tensor_names(shard)
    return shards


def stored_tensors(directory: Path) -> dict[str, TensorEntry]:
    """What the headers of a directory's weights say, by tensor; empty where it has no safetensors weights.

    Raises:
        LokiError: see `check_weights`.
    """
    if not (directory / INDEX_NAME).exists() and not (directory / SINGLE_NAME).exists():
        return {}
    shards = check_weights(directory)
    return {name: entry for shard in shards for name, entry in safetensors_header(shard, advice=_ADVICE).items()}


def tensor_names(shard: Path) -> list[str]:
    """Names of the tensors in one safetensors file."""
    with safe_open(shard, framework="pt") as opened:
        return list(opened.keys())


def fingerprint(directory: Path) -> str:
    """128-bit hash over the name, dtype, shape and bytes of every tensor; the same however they are sharded.

    Reads the whole checkpoint once (about a second per GB).
    """
    checkpoint = Checkpoint(directory)
    digest = xxhash.xxh3_128()
    for name, tensor in checkpoint.tensors():
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def rows_digest(
    directory: Path,
    tensors: Sequence[Sequence[RowTensor]],
    positions: list[list[int]],
    *,
    dtype: torch.dtype | None = None,
) -> str:
    """128-bit hash of all values of the selected rows, to tell whether training changed any.

    It is the same whatever type they are stored in (bfloat16 or wider). What tells one base model from another under
    an adapter is `loki.implanting.peft.base_weight.base_fingerprint`.

    Args:
        directory: a model directory.
        tensors: the tensors that hold the rows of every layer.
        positions: selected rows of every layer.
        dtype: type to convert the values to first; None keeps theirs.

    Raises:
        LokiError: if one of the tensors is missing, or of another shape than the configuration says.
    """
    checkpoint = Checkpoint(directory)
    digest = xxhash.xxh3_128()
    checkpoint.check_shapes(tensor for layer in tensors for tensor in layer)
    for layer, rows in zip(tensors, positions, strict=True):
        for tensor in layer:
            values = checkpoint.tensor(tensor.name)[tensor.at(rows)]
            values = values.to(dtype or values.dtype).to(torch.float32).contiguous()
            digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
