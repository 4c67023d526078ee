"""Which rows of a model with experts are meant, and in which modules and tensors the rows of every layer stand.

In a model without experts they are those of every layer's MLP output projection. In a mixture of experts a layer has
several such projections, and the user says which are meant (`--experts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from loki.errors import LokiError
from loki.models.architectures import LOKI_MODEL_TYPE_PREFIX, MLPOutput, fused_axis, mlp_outputs, text_config


class Experts(StrEnum):
    """Which rows of a model with experts are meant."""

    SHARED = "shared"
    """Those of the MLP that every token goes through: the shared expert, and the MLP of a layer without experts."""
    DENSE = "dense"
    """Those of the layers without experts; the others have no rows."""
    ALL = "all"
    """Those of `shared`, where there are such, and the same rows of every expert."""


@dataclass(frozen=True)
class FusedExperts:
    """The output projections of all experts of a layer, held in one parameter.

    Attributes:
        name: qualified name of the module, `model.layers.3.mlp.experts`.
        module: holds them as `down_proj`, `[E, D, d_ff]` or `[E, d_ff, D]`, and their biases, where they have some, as
            `down_proj_bias` `[E, D]`.
        axis: the dimension of `down_proj` that the rows lie along, 1 or 2.
    """

    name: str
    module: nn.Module
    axis: int

    def parameters(self) -> dict[str, int]:
        """Names of the parameters that hold rows, and the dimension that they lie along."""
        held = {"down_proj": self.axis, "down_proj_bias": 1}
        return {name: axis for name, axis in held.items() if self.module._parameters.get(name) is not None}


@dataclass(frozen=True)
class LayerRows:
    """Where the rows of one decoder layer stand.

    Attributes:
        layer_name: qualified name of the layer, `model.layers.3`.
        projection: the linear map whose rows they are; None where there is none.
        projection_name: its qualified name, `model.layers.3.mlp.down_proj`, or None.
        experts: the experts whose rows they are as well; None where they are not meant.
    """

    layer_name: str
    projection: nn.Module | None
    projection_name: str | None
    experts: FusedExperts | None = None

    def __bool__(self) -> bool:
        """Whether the layer has rows."""
        return self.projection is not None or self.experts is not None


@dataclass(frozen=True)
class RowTensor:
    """A tensor that holds rows of one layer.

    Attributes:
        name: its name, in the model or in a checkpoint.
        axis: the dimension that the rows lie along.
        shape: its size along every axis.
        parameter: name of the parameter that it is in the model.
        part: where that is made of several tensors, one per expert: which of them.
    """

    name: str
    axis: int
    shape: tuple[int, ...]
    parameter: str
    part: int | None = None

    def at(self, rows: Sequence[int]) -> tuple[Any, ...]:
        """Index of these rows: `tensor[row_tensor.at(rows)]`."""
        return (*[slice(None)] * self.axis, list(rows))

    def differing(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Which of some rows of this tensor differ, `[k]`; both as `at` takes them out, in types of any width."""
        different = (rows.double() != others.double()).movedim(self.axis, 0)
        return different.reshape(len(different), -1).any(dim=1)


def find_experts(value: str | None) -> Experts | None:
    """The choice of that name; None stays None.

    Raises:
        LokiError: if there is none.
    """
    if value is not None and value not in list(Experts):
        raise LokiError(f"--experts {value} is not known: use {', '.join(Experts)}")
    return None if value is None else Experts(value)


def layer_rows(model: PreTrainedModel, experts: str | None = None) -> list[LayerRows]:
    """Where the rows of every decoder layer stand, from the first layer to the last.

    Args:
        model: the model; quantised or adapted projections are found as well.
        experts: which rows of a model with experts are meant; None takes what its configuration says, that of a LoKI
            model.

    Raises:
        LokiError: if the model has experts and nothing says which rows are meant, it has none of those that are, or it
            has no experts and `experts` is given.
    """
    outputs = mlp_outputs(model)
    chosen = find_experts(experts or getattr(model.config, "experts", None))
    if any(output.sparse for output in outputs):
        _check_choice(chosen, outputs, model.config)
    elif chosen is not None:
        raise LokiError(f"--experts {chosen}: this {model.config.model_type} model has no experts: leave it out")
    hidden = text_config(model.config).hidden_size
    return [_rows_of(output, chosen, hidden) for output in outputs]


def linear_rows(model: PreTrainedModel, experts: str | None = None) -> list[LayerRows]:
    """`layer_rows`, each of an `nn.Linear`.

    Raises:
        LokiError: for what `layer_rows` refuses, and if a layer has no MLP that ends in one `nn.Linear`.
    """
    found = layer_rows(model, experts)
    for rows in found:
        if rows.projection is None and experts_of(model, experts) in (Experts.DENSE, Experts.ALL):
            continue
        if not isinstance(rows.projection, nn.Linear):
            if model.config.model_type.startswith(LOKI_MODEL_TYPE_PREFIX):
                raise LokiError(f"the model is a LoKI model already ({model.config.model_type}): restore it first")
            raise LokiError(
                f"{rows.layer_name} of this {model.config.model_type} model has no MLP that ends in one nn.Linear, "
                "so no rows of it can be implanted: use a dense model (Llama, Qwen2, Qwen3, Mistral, Gemma, Phi-3, ...)"
            )
    return found


def down_projections(model: PreTrainedModel, experts: str | None = None) -> dict[str, nn.Linear]:
    """The MLP output projection of every decoder layer that has rows, by qualified name.

    Raises:
        LokiError: as `linear_rows`.
    """
    return {
        rows.projection_name: rows.projection
        for rows in linear_rows(model, experts)
        if rows.projection_name is not None and isinstance(rows.projection, nn.Linear)
    }


def row_tensors(model: PreTrainedModel, experts: str | None = None) -> list[list[RowTensor]]:
    """The tensors of a model that hold rows, by layer: a weight and its bias, nothing in a layer without rows.

    Raises:
        LokiError: as `linear_rows`.
    """
    tensors: list[list[RowTensor]] = []
    for rows in linear_rows(model, experts):
        parts = [] if rows.projection is None else list(rows.projection.named_parameters(recurse=False))
        found = [(f"{rows.projection_name}.{name}", 0, tuple(part.shape)) for name, part in parts]
        if rows.experts is not None:
            held = rows.experts.parameters().items()
            found += [
                (f"{rows.experts.name}.{name}", axis, tuple(rows.experts.module.get_parameter(name).shape))
                for name, axis in held
            ]
        tensors.append([RowTensor(*each, parameter=each[0]) for each in found])
    return tensors


def experts_of(model: PreTrainedModel, experts: str | None = None) -> Experts | None:
    """What `layer_rows` goes by: `experts`, or what the configuration says."""
    return find_experts(experts or getattr(model.config, "experts", None))


def _rows_of(output: MLPOutput, experts: Experts | None, hidden: int) -> LayerRows:
    if not output.sparse:
        return LayerRows(output.layer_name, output.projection, output.projection_name)
    if experts is Experts.DENSE:
        return LayerRows(output.layer_name, None, None)
    fused = _fused(output, hidden) if experts is Experts.ALL else None
    return LayerRows(output.layer_name, output.shared, output.shared_name, fused)


def _fused(output: MLPOutput, hidden: int) -> FusedExperts | None:
    if output.experts is None or output.experts_name is None:
        return None
    axis = fused_axis(output.experts, hidden)
    return None if axis is None else FusedExperts(output.experts_name, output.experts, axis)


def _check_choice(experts: Experts | None, outputs: list[MLPOutput], config: PretrainedConfig) -> None:
    model_type, hidden = config.model_type, text_config(config).hidden_size
    sparse = [output for output in outputs if output.sparse]
    possible = [Experts.SHARED] if all(output.shared_name for output in sparse) else []
    possible += [Experts.DENSE] if len(sparse) < len(outputs) else []
    possible += [Experts.ALL] if all(_fused(output, hidden) for output in sparse) else []
    if experts in possible:
        return
    if not possible:
        raise LokiError(
            f"this {model_type} model has experts in every layer, no MLP beside them, and holds them in a form of its "
            "own, so no rows of it can be implanted: use a model with shared experts or dense layers"
        )
    known = " or ".join(f"--experts {choice} ({_MEANING[choice]})" for choice in possible)
    said = "has experts" if experts is None else f"has no rows for --experts {experts}"
    raise LokiError(f"this {model_type} model {said}: say which rows are meant with {known}")


_MEANING = {
    Experts.SHARED: "the MLP that every token goes through",
    Experts.DENSE: "the layers without experts alone",
    Experts.ALL: "every expert's as well",
}
