"""What the tensors of a checkpoint are called in the model that Transformers makes of it.

Some families are stored under other names than those of their modules (`language_model.model.layers` for
`model.language_model.layers`), and saved again under the one or the other.
"""

from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


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
