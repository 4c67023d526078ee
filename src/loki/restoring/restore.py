"""From a trained LoKI model back to an ordinary one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.trainer_utils import get_last_checkpoint

from loki.artefacts.model_card import RESTORED, write_model_card
from loki.artefacts.positions import Positions, check_positions, check_positions_fit, read_positions
from loki.errors import LokiError
from loki.files import atomic_directory, protect_inputs, refuse_existing, write_json
from loki.implanting.modeling import LoKIConfigMixin
from loki.inputs import checked, read_json
from loki.models.architectures import text_config
from loki.models.checkpoint import Checkpoint, rows_digest
from loki.models.experts import RowTensor
from loki.models.loading import load_config
from loki.models.model_directory import AnyModel, ModelDirectory, models_read
from loki.models.rewriting import cast_floats, rewrite_weights
from loki.models.side_files import copy_side_files
from loki.models.tensor_names import names_in, selected_by_tensor, stored_row_tensors
from loki.restoring.adapter import is_adapter, restore_adapter
from loki.restoring.ordinary import ordinary_config
from loki.restoring.rounding import RoundedRows
from loki.restoring.scale import check_scale, scale_rows

# Of the place where a tokenizer was loaded from; TRL saves them with it.
_LOADING_KEYS = ("is_local", "local_files_only")


def restore_loki_model(
    model_path: str | Path,
    save_dir: str | Path,
    *,
    base_model: AnyModel | None = None,
    target_pos_path: str | Path | None = None,
    scale: float = 1.0,
    allow_unchanged: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write a trained LoKI model as an ordinary model that needs no LoKI, tokenizer and generation config included.

    The checkpoint alone is enough: it holds the positions, the base model's name and the fingerprint of its rows.

    Args:
        model_path: a LoKI model directory, a LoKI adapter, or a checkpoint that a trainer saved of one.
        save_dir: where to write; it appears when it is complete.
        base_model: the base model. If given, the checkpoint must have been made from it, and tokenizer files that the
            checkpoint lacks are taken from it.
        target_pos_path: positions file. If given, it must agree with the checkpoint's.
        scale: factor of what training changed in the rows: 1 restores them as trained, less moves them towards the
            base model's (`loki.restoring.scale`), which is then read.
        allow_unchanged: accept a checkpoint in which no selected row changed, and scale 0.
        overwrite: replace what stands at `save_dir`.
        trust_remote_code: run Python code that the base model brings along.

    Returns:
        `save_dir`.

    Raises:
        LokiError: if the checkpoint is missing, empty, damaged, no LoKI model, made from another base or for other
            positions, or has no changed row.
    """
    target = Path(save_dir)
    check_scale(scale, allow_zero=allow_unchanged)
    refuse_existing(target, overwrite=overwrite)
    protect_inputs(target, *models_read(model_path, base_model), target_pos_path)
    if is_adapter(Path(model_path)):
        return restore_adapter(
            Path(model_path),
            target,
            base_model=base_model,
            positions=None if target_pos_path is None else read_positions(Path(target_pos_path)),
            scale=scale,
            allow_unchanged=allow_unchanged,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
        )
    source = _checkpoint(Path(model_path))
    config = load_config(source)
    if not isinstance(config, LoKIConfigMixin):
        raise LokiError(f"{source} is not a LoKI model ({config.model_type}): it needs no restoring")
    origin = f"target_pos in the configuration of {source}"
    positions = check_positions(config.target_pos, origin=origin)
    if target_pos_path is not None and read_positions(Path(target_pos_path)) != positions:
        raise LokiError(f"positions file {target_pos_path} is not the one that {source} was made with")
    if scale != 1 and base_model is None:
        base_model = config.base_model_name_or_path
    base = ModelDirectory.of(base_model, experts=config.experts) if base_model is not None else None
    if base is not None and config.base_fingerprint not in (None, base.fingerprint):
        raise LokiError(
            f"{source} was made from {config.base_model_name_or_path}, not from {base_model}, whose weights are others"
        )
    ordinary = ordinary_config(config, base.path if base else None)
    tensors = stored_row_tensors(ordinary, Checkpoint(source).names(), experts=config.experts)
    check_positions_fit(positions, layers=len(tensors), hidden=text_config(ordinary).hidden_size, origin=origin)
    dtype = getattr(torch, config.base_dtype) if config.base_dtype else None
    # Rounded as they are going to be written: a change that the base's type cannot hold is none.
    if not allow_unchanged and rows_digest(source, tensors, positions, dtype=dtype) == config.base_rows_fingerprint:
        raise LokiError(
            f"{source}: 0 of {sum(map(len, positions))} selected rows changed in training, once rounded to "
            f"{config.base_dtype}; check the learning rate and the data, or pass --allow-unchanged to restore it all "
            "the same"
        )
    cast = cast_floats(dtype)
    rescale = scale_rows(base, tensors, positions, scale, dtype) if base is not None else None

    selected = selected_by_tensor(tensors, positions)
    held_by = {tensor.name: (layer, tensor) for layer, parts in enumerate(tensors) for tensor in parts}
    before = _rows_of_base(base, config, tensors, positions, dtype)
    rounded = RoundedRows()

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        # Trainers may have upcast the weights; casting them back is exact for all but the trained rows.
        trained = tensor[selected[name]] if name in selected else None  # a copy: what follows may be in place
        changed = cast(name, tensor if rescale is None else rescale(name, tensor))
        if trained is None:
            return changed
        written = changed[selected[name]]
        if not written.isfinite().all():
            raise LokiError(
                f"{source}: selected rows of {name} are NaN or infinite, so it cannot be restored: train again"
            )
        if before is not None:
            layer, place = held_by[name]
            old = before(name)
            rounded.count(layer, place.differing(trained, old), place.differing(written, old))
        return changed

    with atomic_directory(target, overwrite=overwrite) as temporary:
        rewrite_weights(source, temporary, change)
        rounded.check(str(source), allow_none=allow_unchanged)
        for directory in [base.path, source] if base else [source]:
            copy_side_files(directory, temporary)
        _clean_tokenizer_config(temporary / "tokenizer_config.json")
        ordinary.save_pretrained(temporary)
        if not (temporary / "generation_config.json").is_file():
            GenerationConfig.from_model_config(ordinary).save_pretrained(temporary)
        write_model_card(
            temporary,
            RESTORED,
            name=target.name,
            base=str(config.base_model_name_or_path or "unknown model"),
            positions=positions,
            hidden=text_config(ordinary).hidden_size,
            trained=source,
        )
    if scale != 0:
        rounded.say()
    return target


def _rows_of_base(
    base: ModelDirectory | None,
    config: Any,
    tensors: list[list[RowTensor]],
    positions: Positions,
    dtype: torch.dtype | None,
) -> Callable[[str], torch.Tensor] | None:
    """The selected rows in a tensor of the checkpoint, by its name, before training: in the type they were trained in.

    None where no directory is at hand that holds them: a base on the hub is not fetched only to count rows.
    """
    named = config.base_model_name_or_path
    if base is None and not (named and Path(named).is_dir()):
        return None
    try:
        found = base or ModelDirectory(named, experts=config.experts)
        stored = found.editable_rows(positions)
        if rows_digest(found.path, stored, positions, dtype=dtype) != config.base_rows_fingerprint:
            return None
    except LokiError:  # whatever stands there now
        return None
    # Saved by a trainer, the same parameters may have other names, and may be one tensor or several.
    names = names_in(stored, tensors)
    if names is None:
        return None
    index = selected_by_tensor(tensors, positions)

    def before(name: str) -> torch.Tensor:
        values = found.checkpoint.tensor(names[name])[index[name]]
        return values.to(dtype or values.dtype)

    return before


def _checkpoint(path: Path) -> Path:
    if not path.is_dir() or not any(path.iterdir()):
        raise LokiError(f"checkpoint {path} is missing or empty: name the directory that training wrote")
    if not (path / "config.json").is_file():
        last = get_last_checkpoint(str(path))
        hint = f"; did you mean {last}?" if last else ""
        raise LokiError(f"checkpoint {path} has no config.json: it is not a model directory{hint}")
    Checkpoint(path)
    return path


def _clean_tokenizer_config(path: Path) -> None:
    value = read_json(path, what="tokenizer file") if path.is_file() else {}
    values = checked(dict[str, Any], value, f"tokenizer file {path.name}", advice="copy the base model's into it")
    kept = {key: value for key, value in values.items() if key not in _LOADING_KEYS}
    if kept != values:
        write_json(path, kept, overwrite=True)
