"""What a saved adapter changes in the stored tensors of its base."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.implanting.experts import as_held, by_expert
from loki.implanting.peft.adapter_files import LayerDelta, SavedAdapter
from loki.models.experts import Experts, RowTensor
from loki.models.model_directory import ModelDirectory
from loki.models.tensor_names import stored_modules


@dataclass(frozen=True)
class Change:
    """What an adapter adds to rows of one stored tensor.

    Attributes:
        layer: number of the layer.
        delta: what the adapter adds there.
        tensor: the stored tensor, which is one expert's where the base stores them one by one.
    """

    layer: int
    delta: LayerDelta
    tensor: RowTensor

    @property
    def rows(self) -> list[int]:
        """The row indices."""
        return self.delta.rows

    @property
    def values(self) -> torch.Tensor:
        """What is added to `stored[tensor.at(rows)]`."""
        matrix, experts = self.delta.matrix, self.delta.experts
        if self.tensor.part is not None:
            return by_expert(matrix, experts)[self.tensor.part].movedim(0, self.tensor.axis)
        return as_held(matrix, experts, self.tensor.axis) if self.tensor.axis else matrix

    def fits(self, stored: torch.Tensor) -> bool:
        """Whether the stored tensor has these rows, of this width."""
        axis, shape = self.tensor.axis, list(stored.shape)
        if len(shape) != len(self.tensor.shape) or max(self.rows) >= shape[axis]:
            return False
        shape[axis] = len(self.rows)
        return list(self.values.shape) == shape


def changes_of(adapter: SavedAdapter, base: ModelDirectory, unloaded: PreTrainedModel) -> dict[str, Change]:
    """What the adapter changes, by the names of the base's stored tensors.

    Args:
        adapter: the adapter.
        base: its base, with the same choice of experts.
        unloaded: the base model without weights.

    Raises:
        LokiError: if the adapter lacks what its base has in one of its layers, or the other way round.
    """
    modules = [delta.module for delta in adapter.adapted]
    if adapter.config.experts != Experts.ALL:
        names = iter(stored_modules(unloaded, modules, base.checkpoint.names()))
        found = [
            Change(layer, delta, RowTensor(f"{next(names)}.weight", 0, _shape(unloaded, weight), weight))
            for layer, deltas in enumerate(adapter.layers)
            for delta in deltas
            for weight in [f"{delta.module}.weight"]
        ]
        return {change.tensor.name: change for change in found}
    changes: dict[str, Change] = {}
    for layer, (deltas, tensors) in enumerate(zip(adapter.layers, base.row_tensors, strict=True)):
        held = [tensor for tensor in tensors if not tensor.parameter.endswith("bias")] if deltas else []
        weights = {tensor.parameter for tensor in held}
        ends = [(delta, f"{delta.module}.{end}") for delta in deltas for end in ("down_proj", "weight")]
        of_weight = {name: delta for delta, name in ends if name in weights}
        counts = {name: sum(t.parameter == name for t in held if t.part is not None) for name in weights}
        if len(of_weight) != len(deltas) or any(
            name not in of_weight or count not in (0, of_weight[name].experts) for name, count in counts.items()
        ):
            raise LokiError(
                f"{adapter.path} changes other modules than {base.path} has in layer {layer}: name the right base with "
                "--base"
            )
        changes |= {tensor.name: Change(layer, of_weight[tensor.parameter], tensor) for tensor in held}
    return changes


def _shape(model: PreTrainedModel, weight: str) -> tuple[int, ...]:
    held = dict(model.named_parameters()).get(weight)
    if held is None:
        raise LokiError(f"the base model has no {weight}, which the adapter changes: name the right base with --base")
    return tuple(held.shape)
