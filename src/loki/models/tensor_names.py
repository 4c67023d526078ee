"""What tensors are called: in a checkpoint, in the model that Transformers makes of it, and those of `down_proj`.

Some families are stored under other names than those of their modules (`language_model.model.layers` for
`model.language_model.layers`), and saved again under the one or the other.
"""

from collections.abc import Iterable

from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from loki.artefacts.positions import Positions
from loki.models.architectures import down_projections
from loki.models.classes import skeleton


def module_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """The name in `model` of every tensor stored under one; a tensor that is converted, not renamed, keeps its own.

    Args:
        model: the model, which may be on the meta device.
        stored: names of the tensors in a checkpoint.

    Returns:
        From the stored name to the model's.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    wanted = model.state_dict()
    names: dict[str, str] = {}
    for name in stored:
        renamed, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        names[name] = renamed if converted is None and renamed in wanted else name
    return names


def stored_modules(model: PreTrainedModel, modules: list[str], stored: Iterable[str]) -> list[str]:
    """Under which name the weight of each module is stored, without `.weight`; a module's own where there is none.

    Args:
        model: the model, which may be on the meta device.
        modules: qualified names of modules with a `weight`.
        stored: names of the tensors in a checkpoint.
    """
    found = {renamed: name for name, renamed in module_names(model, stored).items()}
    return [found.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight") for module in modules]


def projection_names(
    config: PretrainedConfig, *, trust_remote_code: bool = False, stored: Iterable[str] | None = None
) -> list[str]:
    """Qualified names of every layer's `down_proj`, from the first layer to the last, without loading any weight.

    Args:
        config: the model's configuration.
        trust_remote_code: run Python code that the model brings along.
        stored: names of a checkpoint's tensors; if given, the names are those that the checkpoint has the weights
            under (`stored_modules`), else those of the modules.

    Raises:
        LokiError: if the configuration makes no model, or a layer has no MLP that ends in one `nn.Linear`.
    """
    model = skeleton(config, trust_remote_code=trust_remote_code)
    names = list(down_projections(model))
    return names if stored is None else stored_modules(model, names, stored)


def selected_by_tensor(names: list[str], positions: Positions) -> dict[str, list[int]]:
    """The selected rows of every `down_proj.weight`, and their entries in its bias, by the tensor's name.

    Args:
        names: qualified name of every layer's `down_proj`.
        positions: selected rows of every layer.
    """
    return {f"{name}.{part}": rows for name, rows in zip(names, positions, strict=True) for part in ("weight", "bias")}
