"""Writing a model directory's weights anew, shard by shard, each tensor through a function."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from loki.errors import LokiError
from loki.files import write_json
from loki.inputs import read_json, reading
from loki.models.checkpoint import INDEX_NAME, PLAIN_DTYPES, check_weights, is_sharded

Change = Callable[[str, torch.Tensor], torch.Tensor]
"""From a tensor's name and value to its new value, of the same shape."""


def rewrite_weights(source: Path, target: Path, change: Change) -> None:
    """Write the weights of `source` to `target`, each tensor through `change`; one shard in memory at a time.

    Args:
        source: a model directory with safetensors weights.
        target: an existing directory; gets shards of the same names, and the index.
        change: from a tensor's name and value to its new value, of the same shape.

    Raises:
        LokiError: if the weights of `source` are missing or damaged, or one is NaN or infinite.
    """
    total = 0
    for shard in check_weights(source):
        with reading("weights file", shard), safe_open(shard, framework="pt") as opened:
            metadata = opened.metadata()
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        tensors = {name: change(name, stored.pop(name)).contiguous() for name in list(stored)}
        check_finite(tensors, shard)
        save_file(tensors, target / shard.name, metadata=metadata or {"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
    if is_sharded(source):
        index = read_json(source / INDEX_NAME, what="weight index")
        index["metadata"] = {**(index.get("metadata") or {}), "total_size": total}
        write_json(target / INDEX_NAME, index)


def check_finite(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Check that every weight is a number.

    Args:
        tensors: by their names.
        file: that they are read from.

    Raises:
        LokiError: names the first tensor that is NaN or infinite somewhere.
    """
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise LokiError(
                f"weights file {file}: {name} is NaN or infinite: fetch or save the model again, or train it again"
            )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; True for types that hold neither, or are not plain numbers."""
    return not tensor.numel() or tensor.dtype not in PLAIN_DTYPES or bool(tensor.isfinite().all())


def cast_floats(dtype: torch.dtype | None) -> Change:
    """A change that converts floating-point tensors to `dtype`; None keeps them as they are."""

    def cast(_: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    return cast
