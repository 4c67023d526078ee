"""A LoKILinear whose rows change along chosen input directions only."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_fsdp_enabled

from loki.errors import LokiError
from loki.implanting.directions import Directions, digest
from loki.implanting.linear import LoKILinear
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
        base_rows: `W_S` `[k, in_features]`, in the type of the weight.
        directions: `U`. No buffer, so that no trainer casts it.

    Raises:
        LokiError: if the directions are for another number of inputs.
    """

    base_rows: torch.Tensor

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
        self.directions = directions.detach().to(self.weight.device)
        self.register_buffer("base_rows", self.weight.detach()[self.rows].clone(), persistent=False)
        blocks, _, count = self.directions.shape
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        zeros = torch.zeros(len(self.rows), blocks * count, dtype=dtype, device=self.weight.device)
        self.active_coefficients = nn.Parameter(zeros)

    def active_rows(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`W_S + C U^T` `[k, in_features]` in at least float32, for autograd; and no bias."""
        coefficients = self.active_coefficients
        if self.directions.device != coefficients.device:
            self.directions = self.directions.to(coefficients.device)
        with torch.autocast(coefficients.device.type, enabled=False):
            dtype = torch.promote_types(coefficients.dtype, torch.float32)
            directions = self.directions.to(dtype)
            by_block = coefficients.to(dtype).view(len(self.rows), len(directions), -1).transpose(0, 1)
            change = (by_block @ directions.transpose(1, 2)).transpose(0, 1).reshape(len(self.rows), self.in_features)
            return self.base_rows.to(dtype) + change, None

    def split(self) -> None:
        """Start anew from what stands in the weight."""
        with torch.no_grad():
            self.base_rows.copy_(self.weight[self.rows])
            self.active_coefficients.zero_()

    def extra_repr(self) -> str:
        """As a LoKILinear, and the number of directions."""
        return f"{super().extra_repr()}, directions={self.active_coefficients.shape[1]}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Start anew from an ordinary weight; as a base that changed nothing yet."""
        loaded = state_dict.get(prefix + "weight")
        if loaded is not None:
            state_dict[prefix + "active_coefficients"] = torch.zeros_like(self.active_coefficients)
            with torch.no_grad():
                self.base_rows.copy_(loaded[self.rows.to(loaded.device)])
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


def protect_rows(model: PreTrainedModel, directions: Directions) -> None:
    """Constrain the active rows of a LoKI model to input directions, and note in its configuration which.

    Args:
        model: a LoKI model, split into rows.
        directions: of every layer that has active rows.

    Raises:
        LokiError: if a layer has no directions or they do not fit it, or FSDP is on.
    """
    if is_fsdp_enabled():
        raise LokiError("--protect does not work under FSDP: use several processes without it, or DeepSpeed ZeRO-2")
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
