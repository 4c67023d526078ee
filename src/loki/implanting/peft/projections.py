"""Where the rows of an adapter's layers stand in its base model."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from loki.errors import LokiError
from loki.implanting.peft.base_weight import Selected, plain_tensor, plain_weight, rows_of_weight
from loki.implanting.peft.config import LoKIConfig
from loki.implanting.peft.experts import ExpertsAdapter
from loki.implanting.peft.layer import RowAdapter
from loki.models.checkpoint import PLAIN_DTYPES
from loki.models.experts import Experts, FusedExperts, LayerRows, layer_rows


@dataclass(frozen=True)
class Projection:
    """A module that holds rows of one layer.

    Attributes:
        name: its qualified name in the base model.
        module: a linear projection or the experts of a layer, or the PEFT layer around it.
        axis: the dimension of the weight that rows lie along: 0, or 1 or 2 where it is that of all experts.
    """

    name: str
    module: nn.Module
    axis: int = 0

    @property
    def parameter(self) -> str:
        """Qualified name of the weight."""
        return f"{self.name}.{'down_proj' if self.axis else 'weight'}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of one index `D`, and inputs `d_ff`."""
        base = self._base
        if not self.axis:
            return base.out_features, base.in_features
        shape = base.get_parameter("down_proj").shape
        return shape[self.axis], shape[3 - self.axis]

    @property
    def merged(self) -> bool:
        """Whether adapters are merged into it."""
        return isinstance(self.module, BaseTunerLayer) and bool(self.module.merged)

    def plain_weight(self) -> torch.Tensor | None:
        """The weight where it is an ordinary tensor, see `base_weight.plain_weight`."""
        return plain_tensor(self._base.get_parameter("down_proj")) if self.axis else plain_weight(self._base)

    def adapter(self) -> RowAdapter:
        """The PEFT layer around the module: that which is there, or a new one."""
        if isinstance(self.module, RowAdapter):
            return self.module
        return ExpertsAdapter(FusedExperts(self.name, self.module, self.axis)) if self.axis else RowAdapter(self.module)

    @property
    def _base(self) -> Any:
        return base_layer(self.module)


def find_projections(model: nn.Module, config: LoKIConfig) -> list[list[Projection]]:
    """The modules that hold the rows of every layer, whether or not they are adapted already.

    Args:
        model: the base model.
        config: says which rows of a model with experts are meant, or names the projections.

    Returns:
        By layer: one; none in a layer without rows; with `--experts all` the projection beside the experts, where there
        is one, and the experts.

    Raises:
        LokiError: if a layer has no linear MLP output projection, none matches `target_modules`, the model has experts
            and the configuration does not say which rows are meant, or all experts' are and they are quantised.
    """
    names = config.target_modules
    if names is None:
        return [_of_layer(rows, config) for rows in layer_rows(model, config.experts)]
    found = [(name, module) for name, module in model.named_modules() if _matches(name, names)]
    if not found:
        raise LokiError(f"no module of the base model matches target_modules={names!r}: check the names")
    return [_linear(name, module, config) for name, module in found]


def weights_of(projections: list[list[Projection]]) -> list[str]:
    """The qualified names of their weights."""
    return [projection.parameter for layer in projections for projection in layer]


def selected_rows(config: LoKIConfig, projections: list[list[Projection]]) -> Selected | None:
    """The selected rows of every layer, for a fingerprint.

    None where they cannot be read as they were saved: quantised, sharded, not yet loaded, merged into.
    """
    selected: Selected = []
    for layer, (rows, found) in enumerate(zip(config.row_lists, projections, strict=True)):
        for projection in found:
            weight = projection.plain_weight()
            if weight is None or projection.merged:
                return None
            selected += rows_of_weight(layer, rows, weight, projection.axis)
    return selected


def base_layer(module: Any) -> Any:
    """The module itself, or the one that PEFT layers are around."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _of_layer(rows: LayerRows, config: LoKIConfig) -> list[Projection]:
    if rows.experts is None:
        return _linear(rows.projection_name, rows.projection, config)
    beside = [] if rows.projection is None else _linear(rows.projection_name, rows.projection, config)
    return [*beside, _experts(rows.experts)]


def _linear(name: str | None, module: Any, config: LoKIConfig) -> list[Projection]:
    if name is None and config.experts == Experts.DENSE:
        return []
    base = base_layer(module)
    # Quantised Linears need not be nn.Linears, but say their shape; Conv1D (GPT-2) holds its rows as columns.
    if name is None or not (hasattr(base, "in_features") and hasattr(base, "out_features")):
        raise LokiError(
            f"{name or 'a decoder layer of the base model'} does not end in one linear projection, so no rows of "
            "it can be adapted: use a dense model (Llama, Qwen2, Qwen3, Mistral, Gemma, Phi-3, ...)"
        )
    return [Projection(name, module)]


def _experts(experts: FusedExperts) -> Projection:
    projection = Projection(experts.name, experts.module, experts.axis)
    dtype = base_layer(experts.module).get_parameter("down_proj").dtype
    if dtype not in PLAIN_DTYPES:
        raise LokiError(
            f"--experts all: {projection.parameter} is quantised ({str(dtype).removeprefix('torch.')}): load the base "
            "model in bfloat16, or use --experts shared or dense"
        )
    return projection


def _matches(name: str, target_modules: list[str] | str) -> bool:
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in target_modules)
