"""From a trained LoKI adapter to an ordinary model."""

from pathlib import Path

import torch
from peft.utils import CONFIG_NAME

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.files import atomic_directory, protect_inputs
from loki.implanting.peft.adapter_files import SavedAdapter, read_adapter
from loki.implanting.peft.base_weight import base_fingerprint, same_base
from loki.models.directories import copy_side_files, rewrite_weights
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.restoring.scale import scaled


def is_adapter(path: Path) -> bool:
    """Whether `path` is the directory of a PEFT adapter, and of no whole model."""
    return (path / CONFIG_NAME).is_file() and not (path / "config.json").is_file()


def restore_adapter(
    path: Path,
    output: Path,
    *,
    base_model: AnyModel | None = None,
    positions: Positions | None = None,
    scale: float = 1.0,
    allow_unchanged: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the base model with a LoKI adapter merged into it: added in float32, and rounded once.

    Args:
        path: directory of the adapter.
        output: where to write; it appears when it is complete.
        base_model: the base model; None takes the one that the adapter names.
        positions: if given, they must be the adapter's.
        scale: factor of what the adapter adds, from 0 to 1.
        allow_unchanged: accept an adapter that changes nothing.
        overwrite: replace what stands at `output`.

    Returns:
        `output`.

    Raises:
        LokiError: if the adapter is damaged, no LoKI adapter, made for another base or other positions, or changes
            nothing; or if `output` exists.
    """
    adapter = read_adapter(path)
    if positions is not None and positions != adapter.config.row_lists:
        raise LokiError(f"the positions are not the ones that {path} was made with")
    named = base_model or adapter.config.base_model_name_or_path
    if named is None:
        raise LokiError(f"adapter {path} names no base model: give --base")
    protect_inputs(output, path, named)
    base = ModelDirectory.of(named)
    _check_base(adapter, base)
    if not allow_unchanged and not any(layer.matrix.any() for layer in adapter.adapted):
        raise LokiError(
            f"{path} changes nothing: check the learning rate and the data, or pass --allow-unchanged to restore it "
            "all the same"
        )
    deltas = {f"{layer.module}.weight": layer for layer in adapter.adapted}

    def add(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if (layer := deltas.get(name)) is not None:
            tensor[layer.rows] = scaled(layer.matrix, scale, tensor[layer.rows])
        return tensor

    with atomic_directory(output, overwrite=overwrite) as temporary:
        rewrite_weights(base.path, temporary, add)
        copy_side_files(base.path, temporary)
        base.config.save_pretrained(temporary)
    return output


def _check_base(adapter: SavedAdapter, base: ModelDirectory) -> None:
    checkpoint = base.checkpoint
    selected = []
    for index, layer in enumerate(adapter.layers):
        if layer is None:
            continue
        name = f"{layer.module}.weight"
        if name not in checkpoint:
            raise LokiError(f"{base.path} has no tensor {name}: name the base model of {adapter.path} with --base")
        weight = checkpoint.tensor(name)
        if weight.shape[1] != layer.width or max(layer.rows) >= len(weight):
            raise LokiError(
                f"{name} of {base.path} is {list(weight.shape)}, which {adapter.path} does not fit: check --base"
            )
        selected.append((index, layer.rows, weight))
    wanted = adapter.config.base_fingerprint
    if wanted and not same_base(base_fingerprint(selected), wanted):
        raise LokiError(
            f"{adapter.path} was made for other weights than those of {base.path}: name its base with --base"
        )
