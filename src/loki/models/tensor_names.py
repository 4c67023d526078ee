"""What tensors are called: in a checkpoint, in the model that Transformers makes of it, and those of `down_proj`.

Some families are stored under other names than those of their modules (`language_model.model.layers` for
`model.language_model.layers`), and saved again under the one or the other.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.models.classes import skeleton
from loki.models.experts import RowTensor, row_tensors


def module_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """The name in `model` of every tensor stored under one; a tensor that is converted, not renamed, keeps its own.

    Args:
        model: the model, which may be on the meta device.
        stored: names of the tensors in a checkpoint.

    Returns:
        From the stored name to the model's.
    """
    wanted = model.state_dict()
    renamed = {name: (found, converter) for name, found, converter in _renamed(model, stored)}
    return {
        name: found if converter is None and found in wanted else name for name, (found, converter) in renamed.items()
    }


def _renamed(model: PreTrainedModel, stored: Iterable[str]) -> Iterator[tuple[str, str, WeightConverter | None]]:
    """Of every stored tensor: its name, that of the parameter it goes into, and what converts it on the way."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    wanted = model.state_dict()
    for name in stored:
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        converter = next((one for one in converters if pattern in one.source_patterns), None)
        yield name, renamed, None if pattern is None else converter


def stored_modules(model: PreTrainedModel, modules: list[str], stored: Iterable[str]) -> list[str]:
    """Under which name the weight of each module is stored, without `.weight`; a module's own where there is none.

    Args:
        model: the model, which may be on the meta device.
        modules: qualified names of modules with a `weight`.
        stored: names of the tensors in a checkpoint.
    """
    found = {renamed: name for name, renamed in module_names(model, stored).items()}
    return [found.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight") for module in modules]


def stored_row_tensors(
    config: PretrainedConfig, stored: Iterable[str], *, experts: str | None = None, trust_remote_code: bool = False
) -> list[list[RowTensor]]:
    """The tensors of a checkpoint that hold rows, by layer, without loading any weight.

    Args:
        config: the model's configuration.
        stored: names of the checkpoint's tensors; one that is missing keeps the name that it has in the model.
        experts: which rows of a model with experts are meant.
        trust_remote_code: run Python code that the model brings along.

    Raises:
        LokiError: if the configuration makes no model, or a layer has no MLP that ends in one `nn.Linear`.
    """
    model = skeleton(config, trust_remote_code=trust_remote_code)
    layers = row_tensors(model, experts)
    sources: dict[str, list[tuple[str, WeightConverter | None]]] = {}
    for name, renamed, converter in _renamed(model, stored):
        sources.setdefault(renamed, []).append((name, converter))
    return [[part for tensor in layer for part in _parts(tensor, sources)] for layer in layers]


def _parts(tensor: RowTensor, sources: dict[str, list[tuple[str, WeightConverter | None]]]) -> list[RowTensor]:
    """What a parameter with rows is stored as: one tensor, or one per expert."""
    found = sources.get(tensor.parameter, [(tensor.parameter, None)])
    if len(found) == 1 and found[0][1] is None:
        return [replace(tensor, name=found[0][0])]
    for name, converter in found:
        merges = converter is not None and [type(step).__name__ for step in converter.operations] == ["MergeModulelist"]
        if not merges or tensor.axis == 0:
            raise LokiError(
                f"{name} is not stored as the model holds it ({tensor.parameter}), so its rows cannot be changed "
                "there: load the model with Transformers and save it again, or use --experts shared or dense"
            )
    names = sorted((name for name, _ in found), key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    return [
        replace(tensor, name=name, axis=tensor.axis - 1, shape=tensor.shape[1:], part=part)
        for part, name in enumerate(names)
    ]


def names_in(other: Sequence[Sequence[RowTensor]], tensors: Sequence[Sequence[RowTensor]]) -> dict[str, str] | None:
    """What the tensors with rows of one checkpoint are called in another of the same model.

    Args:
        other: the tensors of the other checkpoint, by layer.
        tensors: those of this one.

    Returns:
        From the name here to the name there; None where the one holds in one tensor what the other holds in several.
    """
    pairs = list(zip(chain.from_iterable(tensors), chain.from_iterable(other), strict=False))
    counts = [[len(layer) for layer in layers] for layers in (tensors, other)]
    if counts[0] != counts[1] or any((a.parameter, a.part) != (b.parameter, b.part) for a, b in pairs):
        return None
    return {here.name: there.name for here, there in pairs}


def selected_by_tensor(tensors: Sequence[Sequence[RowTensor]], positions: Positions) -> dict[str, tuple[Any, ...]]:
    """By the name of every tensor with selected rows, their index in it: `tensor[index]` are those rows.

    Args:
        tensors: the tensors that hold the rows of every layer.
        positions: selected rows of every layer.
    """
    layers = zip(tensors, positions, strict=True)
    return {tensor.name: tensor.at(rows) for layer, rows in layers if rows for tensor in layer}
