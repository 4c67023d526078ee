"""From a trained LoKI adapter to an ordinary model."""

from pathlib import Path

import torch
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from loki.artefacts.model_card import RESTORED, write_model_card
from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.files import atomic_directory, protect_inputs
from loki.implanting.peft.adapter_files import SavedAdapter, read_adapter
from loki.implanting.peft.base_parts import different_parts, parts_of_directory
from loki.implanting.peft.base_weight import base_fingerprint, rows_of_weight, same_base
from loki.implanting.peft.changes import Change, changes_of
from loki.implanting.peft.projections import find_projections, weights_of
from loki.models.classes import skeleton
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.models.rewriting import rewrite_weights
from loki.models.side_files import copy_side_files
from loki.restoring.rounding import RoundedRows
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
    trust_remote_code: bool = False,
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
        trust_remote_code: run Python code that the base model brings along.

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
    base = ModelDirectory.of(named, trust_remote_code=trust_remote_code, experts=adapter.config.experts)
    base.editable_rows(adapter.config.row_lists, origin=f"the positions of {path}")
    unloaded = skeleton(base.config, trust_remote_code=base.trust_remote_code)
    changes = changes_of(adapter, base, unloaded)
    _check_base(adapter, base, unloaded, changes)
    if not allow_unchanged and not any(layer.matrix.any() for layer in adapter.adapted):
        raise LokiError(
            f"{path} changes nothing: check the learning rate and the data, or pass --allow-unchanged to restore it "
            "all the same"
        )
    rounded = RoundedRows()

    def add(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if (change := changes.get(name)) is not None:
            place, moved = change.tensor, change.values
            index = place.at(change.rows)
            before = tensor[index]
            after = scaled(moved, scale, before)
            if not after.isfinite().all():
                raise LokiError(f"{path} makes rows of {name} infinite or NaN in {tensor.dtype}: train it again")
            rounded.count(change.layer, place.differing(moved, torch.zeros_like(moved)), place.differing(after, before))
            tensor[index] = after
        return tensor

    with atomic_directory(output, overwrite=overwrite) as temporary:
        rewrite_weights(base.path, temporary, add)
        rounded.check(str(path), allow_none=allow_unchanged or scale == 0)
        copy_side_files(base.path, temporary)
        base.config.save_pretrained(temporary)
        write_model_card(
            temporary,
            RESTORED,
            name=output.name,
            base=base.name,
            positions=adapter.config.row_lists,
            hidden=base.text_config.hidden_size,
            trained=path,
        )
    if scale != 0:
        rounded.say()
    return output


def _check_base(
    adapter: SavedAdapter, base: ModelDirectory, unloaded: PreTrainedModel, changes: dict[str, Change]
) -> None:
    selected = []
    for name, change in changes.items():
        if name not in base.checkpoint:
            raise LokiError(f"{base.path} has no tensor {name}: name the base model of {adapter.path} with --base")
        weight, place = base.checkpoint.tensor(name), change.tensor
        if not change.fits(weight):
            raise LokiError(
                f"{name} of {base.path} is {list(weight.shape)}, which {adapter.path} does not fit: check --base"
            )
        selected += rows_of_weight(change.layer, change.rows, weight, place.axis, expert=place.part)
    config, made_on = adapter.config, f"{adapter.path} was made on another base than {base.path}"
    if config.base_fingerprint and not same_base(base_fingerprint(selected), config.base_fingerprint):
        raise LokiError(f"{made_on}: its selected rows have other values; name the right one with --base")
    if config.base_values:
        # As it was loaded then: a base in bfloat16 may have been trained on in float32, or the other way round.
        dtype = config.base_values.partition(":")[0]
        as_loaded = [(layer, rows, weight.to(getattr(torch, dtype))) for layer, rows, weight in selected]
        if base_fingerprint(as_loaded, exact=True) != config.base_values:
            here = str(selected[0][2].dtype).removeprefix("torch.")
            raise LokiError(
                f"{made_on}: its rows are the same in another precision ({dtype} then, {here} here); name the right "
                "one with --base"
            )
    with_rows = weights_of(find_projections(unloaded, config))
    if different := different_parts(config.base_parts or {}, parts_of_directory(base, with_rows)):
        raise LokiError(
            f"{made_on}: the weights of {' and '.join(different)} in its layers are others; name the right one with "
            "--base"
        )
