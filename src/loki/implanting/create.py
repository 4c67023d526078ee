"""From a base model and positions to a LoKI model directory."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from loki.artefacts.model_card import LOKI_MODEL, write_model_card
from loki.artefacts.positions import Positions, read_positions
from loki.errors import LokiError
from loki.files import atomic_directory, protect_inputs, refuse_existing
from loki.implanting.directions import (
    Directions,
    check_measured_on,
    check_protect,
    digest,
    least_used_directions,
    write_directions,
)
from loki.implanting.modeling import LoKIConfigMixin, auto_map, loki_classes, write_remote_module
from loki.models.architectures import text_config
from loki.models.checkpoint import rows_digest
from loki.models.experts import Experts
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.models.rewriting import cast_floats, rewrite_weights
from loki.models.side_files import copy_side_files


def create_loki_model(
    loki_model_class: type[PreTrainedModel] | None = None,
    loki_config_cls: type[PretrainedConfig] | None = None,
    *,
    model_name: AnyModel,
    target_pos_path: str | Path,
    save_dir: str | Path,
    torch_dtype: torch.dtype | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    moments: str | Path | None = None,
    protect: float | None = None,
    experts: str | None = None,
) -> Path:
    """Make a LoKI model directory: the base model's weights, with the positions in its configuration.

    The weights are copied shard by shard; the model is not loaded. `AutoModelForCausalLM` loads the directory after
    `import loki`, or with `trust_remote_code=True`, and exactly the selected rows are trainable then.

    Args:
        loki_model_class: as in the published guide; found from the model where it is left out.
        loki_config_cls: likewise.
        model_name: the base model, a local directory or hub id.
        target_pos_path: positions file.
        save_dir: where to write; it appears when it is complete.
        torch_dtype: type to convert the weights to; None keeps theirs.
        overwrite: replace what stands at `save_dir`.
        trust_remote_code: run Python code that the base model brings along.
        moments: file of second moments of the base model's inputs, for `protect`.
        protect: share of the input directions that training leaves alone (`loki.implanting.directions`); None trains
            along all of them.
        experts: which rows are meant where the model has experts: `shared`, `dense` or `all`, see
            `loki.models.experts.Experts`. Such a model needs it, and no other takes it.

    Returns:
        `save_dir`.

    Raises:
        LokiError: if the model or the positions cannot be read or do not fit together, the classes are for another
            family, `protect` has no moments or theirs are of another model, or `save_dir` exists.
    """
    target = Path(save_dir)
    refuse_existing(target, overwrite=overwrite)
    protect_inputs(target, model_name, target_pos_path, moments)
    source = ModelDirectory.of(model_name, trust_remote_code=trust_remote_code, experts=experts)
    base = source.config
    config_class, model_class = _classes(base, loki_config_cls, loki_model_class)
    config = loki_configuration(
        source,
        read_positions(Path(target_pos_path)),
        config_class=config_class,
        model_class=model_class,
        dtype=torch_dtype,
        origin=f"positions file {target_pos_path}",
    )
    directions = chosen_directions(source, config, moments, protect)
    with atomic_directory(target, overwrite=overwrite) as temporary:
        if directions is not None:
            write_directions(temporary, directions)
        rewrite_weights(source.path, temporary, cast_floats(torch_dtype))
        copy_side_files(source.path, temporary)
        if not (temporary / "generation_config.json").is_file():
            GenerationConfig.from_model_config(base).save_pretrained(temporary)
        config.save_pretrained(temporary)
        write_remote_module(temporary, config.model_type)
        write_loki_card(temporary, config, name=target.name)
    return target


def loki_configuration(
    source: ModelDirectory,
    positions: Positions,
    *,
    config_class: Any = None,
    model_class: Any = None,
    dtype: torch.dtype | None = None,
    origin: str = "positions",
) -> PretrainedConfig:
    """The configuration of a LoKI model made from the base model in `source`.

    Args:
        source: the base model; a hub id is recorded as the user gave it.
        positions: active rows of every layer.
        config_class: LoKI configuration class; None finds it from the model.
        model_class: LoKI model class; None finds it from the model.
        dtype: type that the weights are converted to; None keeps theirs.
        origin: what the positions are called in error messages.

    Raises:
        LokiError: if the positions do not fit the model, or it cannot be implanted.
    """
    base = source.config
    if config_class is None or model_class is None:
        config_class, model_class = _classes(base, config_class, model_class)
    tensors = source.editable_rows(positions, origin=origin)
    stored = source.checkpoint.dtype(next(layer[0].name for layer in tensors if layer))
    values = base.to_dict() | {
        "model_type": config_class.model_type,
        "architectures": [model_class.__name__],
        "auto_map": auto_map(config_class.model_type),
        "target_pos": positions,
        "base_model_name_or_path": source.reference,
        "base_fingerprint": source.fingerprint,
        "base_rows_fingerprint": rows_digest(source.path, tensors, positions, dtype=dtype),
        "base_dtype": str(dtype or stored).removeprefix("torch."),
        "loki_version": version("loki-llm"),
    }
    if source.experts is not None:
        values["experts"] = source.experts.value
    if dtype is not None:
        values["dtype"] = str(dtype).removeprefix("torch.")
    config: PretrainedConfig = config_class.from_dict(values)
    return config


def write_loki_card(directory: Path, config: PretrainedConfig, *, name: str, trained: Path | None = None) -> None:
    """Write the model card of a LoKI model directory.

    Args:
        directory: where.
        config: its configuration.
        name: of the model.
        trained: directory with the record of its training, if it was trained.
    """
    base = str(config.base_model_name_or_path or "unknown model")
    hidden = text_config(config).hidden_size
    write_model_card(
        directory, LOKI_MODEL, name=name, base=base, positions=config.target_pos, hidden=hidden, trained=trained
    )


def chosen_directions(
    source: ModelDirectory, config: PretrainedConfig, moments: str | Path | None, protect: float | None
) -> Directions | None:
    """The input directions to train rows along, noted in `config`; None where nothing is protected.

    Args:
        source: the base model.
        config: LoKI configuration of the model.
        moments: file of second moments of the base model's inputs.
        protect: share of the input directions that training leaves alone.

    Raises:
        LokiError: if one of moments and share is missing, or they do not fit the model.
    """
    if protect is None and moments is None:
        return None
    if protect is None or moments is None:
        raise LokiError("--protect and --moments belong together: measure the moments with `loki moments`")
    check_protect(protect)
    if source.experts is Experts.ALL:
        raise LokiError("--protect goes with --experts shared or dense: the inputs of all experts are not measured")
    check_measured_on(Path(moments), config.base_fingerprint)
    widths = [source.checkpoint.shape(layer[0].name)[1] if layer else 0 for layer in source.row_tensors]
    directions = least_used_directions(Path(moments), protect, config.target_pos, widths=widths)
    config.protect, config.directions_digest = protect, digest(directions)
    return directions


def check_implantable(source: ModelDirectory) -> None:
    """Refuse now a base model that no LoKI model directory can be made of.

    Raises:
        LokiError: if it brings its own code, is a LoKI model or of an unknown family, or its rows are no plain numbers.
    """
    _classes(source.config, None, None)
    source.check_editable()


def _classes(
    base: PretrainedConfig,
    config_class: type[PretrainedConfig] | None,
    model_class: type[PreTrainedModel] | None,
) -> tuple[Any, Any]:
    if isinstance(base, LoKIConfigMixin):
        raise LokiError(f"the base model is a LoKI model already ({base.model_type}): restore it first")
    if not type(base).__module__.startswith("transformers."):
        raise LokiError(
            f"the base model brings its own code ({type(base).__name__}), which no LoKI model directory can carry: "
            "train an adapter on it (`loki adapter --trust-remote-code`, which `loki restore` merges)"
        )
    found_config, found_model = loki_classes(base.model_type)
    given = (config_class or found_config, model_class or found_model)
    for wanted, found in zip(given, (found_config, found_model), strict=True):
        if not issubclass(wanted, found):
            raise LokiError(f"{wanted.__name__} does not fit a {base.model_type} model: use {found.__name__}")
    return given
