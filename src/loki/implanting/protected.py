"""A LoKILinear whose rows change along chosen input directions only."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.implanting.directions import Directions, along, digest
from loki.implanting.linear import LoKILinear
from loki.implanting.sharding import full_tensor, under_deepspeed, under_fsdp
from loki.implanting.splitting import check_trainable, loki_linears
from loki.models.experts import layer_rows


class ProtectedLinear(LoKILinear):
    """A `LoKILinear` whose active rows are `W_S + C U^T`: only `C` is trained, along the fixed directions `U`.

    What the layer does with inputs that are orthogonal to `U` stays as it was. The sum is formed anew in every forward
    pass (`k * r * d_ff` multiplications, less than projecting the inputs as soon as there are more tokens than active
    rows), so gradients, memory and the single large product are those of `LoKILinear`. A bias is not trained: it would
    be felt whatever the input.

    Args:
        linear: whose active rows to constrain; its weight is used, not copied.
        directions: `U` `[blocks, n, r]` with `blocks * n` inputs, orthonormal within each block.

    Attributes:
        active_coefficients: `C` `[k, blocks * r]`, trainable, in at least float32.
        base_rows: `W_S` `[k, in_features]`, in the type of the weight; None under FSDP, where they stand in the
            weight, as nothing is written into it.
        directions: `U`. No buffer, so that no trainer casts it.

    Raises:
        LokiError: if the directions are for another number of inputs.
    """

    base_rows: torch.Tensor | None

    def __init__(self, linear: LoKILinear, directions: torch.Tensor) -> None:
        if directions.shape[0] * directions.shape[1] != linear.in_features:
            raise LokiError(
                f"directions for {directions.shape[0] * directions.shape[1]} inputs do not fit a projection of "
                f"{linear.in_features}: measure the moments on this model"
            )
        original = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        original.weight = cast(nn.Parameter, linear.weight)
        if linear.bias is not None:
            original.bias = cast(nn.Parameter, linear.bias)
        super().__init__(original, linear.rows.tolist())
        del self.active_weight, self.active_bias
        # Not on the meta device, see `LoKILinear`.
        self.directions = directions.detach().to("cpu" if self.weight.is_meta else self.weight.device)
        base_rows = None if under_fsdp() else self.weight.detach()[self.rows].clone()
        self.register_buffer("base_rows", base_rows, persistent=False)
        blocks, _, count = self.directions.shape
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        zeros = torch.zeros(len(self.rows), blocks * count, dtype=dtype, device=self.weight.device)
        self.active_coefficients = nn.Parameter(zeros)

    @property
    def rows_apart(self) -> bool:
        """Also under DeepSpeed, which loads `C` by itself: on rows that have it already, it would count twice."""
        return super().rows_apart or under_deepspeed()

    def active_rows(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`W_S + C U^T` `[k, in_features]` in at least float32, for autograd; and no bias."""
        base = self.weight.detach()[self.rows] if self.base_rows is None else self.base_rows
        return self._moved(base, self.active_coefficients), None

    def _moved(self, base: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        if self.directions.device != coefficients.device:
            self.directions = self.directions.to(coefficients.device)
        with torch.autocast(coefficients.device.type, enabled=False):
            change = along(self.directions, coefficients)
            return base.to(change.dtype) + change

    def merge_into(self, state_dict: dict[str, Any], prefix: str) -> None:
        """As of a LoKILinear."""
        coefficients = state_dict.pop(f"{prefix}active_coefficients", None)
        if coefficients is not None:
            full: torch.Tensor = state_dict[f"{prefix}weight"]
            base = full[self.rows.to(full.device)]
            self._put_rows(state_dict, f"{prefix}weight", self._moved(base, coefficients.to(full.device)))

    def split(self) -> None:
        """Start anew from what stands in the weight."""
        with torch.no_grad():
            if self.base_rows is not None:
                self.base_rows.copy_(self.weight[self.rows])
            self.active_coefficients.zero_()

    def extra_repr(self) -> str:
        """As a LoKILinear, and the number of directions."""
        return f"{super().extra_repr()}, directions={self.active_coefficients.shape[1]}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Start anew from an ordinary weight, as a base that changed nothing yet; or go on with coefficients."""
        loaded, coefficients = state_dict.get(prefix + "weight"), prefix + "active_coefficients"
        # On the meta device, accelerate keeps the buffers elsewhere and puts them back.
        if loaded is not None and self.base_rows is not None and not self.base_rows.is_meta:
            with torch.no_grad():
                self.base_rows.copy_(full_tensor(loaded)[self.rows.to(loaded.device)])
        if loaded is not None and coefficients not in state_dict:
            state_dict[coefficients] = torch.zeros_like(self.active_coefficients)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


def protect_rows(model: PreTrainedModel, directions: Directions) -> None:
    """Constrain the active rows of a LoKI model to input directions, and note in its configuration which.

    Args:
        model: a LoKI model, split into rows.
        directions: of every layer that has active rows.

    Raises:
        LokiError: if a layer has no directions or they do not fit it.
    """
    linears = loki_linears(model)
    for layer, output in enumerate(layer_rows(model)):
        if (linear := linears.get(str(output.projection_name))) is None:
            continue
        if layer not in directions:
            raise LokiError(f"there are no input directions for layer {layer}, which has selected rows: make them anew")
        assert isinstance(linear, LoKILinear)
        parent, _, child = str(output.projection_name).rpartition(".")
        setattr(model.get_submodule(parent), child, ProtectedLinear(linear, directions[layer]))
    model.config.directions_digest = digest(directions)
    check_trainable(model)


def directions_of(model: nn.Module) -> Directions:
    """The directions of a LoKI model by layer; empty where its rows are not constrained."""
    linears = loki_linears(model)
    if not any(isinstance(linear, ProtectedLinear) for linear in linears.values()):
        return {}
    outputs = enumerate(layer_rows(model))
    found = ((layer, linears.get(str(output.projection_name))) for layer, output in outputs)
    return {layer: linear.directions for layer, linear in found if isinstance(linear, ProtectedLinear)}
