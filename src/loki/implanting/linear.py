"""A Linear of which only some rows are trained."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from loki.artefacts.positions import check_positions, check_positions_fit
from loki.implanting.sharding import ACTIVE, full_tensor, rows_are_kept_apart, shard_like
from loki.implanting.switching import SwitchableRows


class LoKILinear(SwitchableRows):
    """A linear map `[..., in_features] -> [..., out_features]` of which only the active rows are trained.

    A row is what the paper calls a knowledge vector: one row of the weight and, where there is a bias, its entry
    (arXiv 2505.22120, section 3.3). The output is that of the original Linear until an active row is trained.

    Forward costs one product with the whole weight, like the original's: the active rows are copied into it first.
    Backward computes the gradient of the active rows alone. Under several processes, where the weight may be sharded
    and a write into it lost, and under `torch.compile`, the active outputs are computed apart instead.

    A state dict holds an ordinary Linear's `weight` and `bias`, and one of an ordinary Linear is loaded. Where FSDP
    shards the weight, it holds the active rows as well, and `merge_into` puts them into the weight.

    Args:
        original_linear: the Linear to take over; its weight is used, not copied.
        target_pos: distinct indices of the active rows, in any order.

    Attributes:
        weight: `[out_features, in_features]`, frozen.
        bias: `[out_features]`, frozen, or None.
        active_weight: `[k, in_features]`, trainable.
        active_bias: `[k]`, trainable, or None.

    Raises:
        LokiError: if an index of `target_pos` is not a row, or is there twice.
    """

    rows: torch.Tensor

    def __init__(self, original_linear: nn.Linear, target_pos: list[int]) -> None:
        super().__init__()
        self.in_features = original_linear.in_features
        self.out_features = original_linear.out_features
        rows = check_positions([list(target_pos)], origin="target_pos") if len(target_pos) else [[]]
        check_positions_fit(rows, layers=1, hidden=self.out_features, origin="target_pos")
        self.weight = original_linear.weight.requires_grad_(False)
        self.bias = None if original_linear.bias is None else original_linear.bias.requires_grad_(False)
        # Not persistent: the configuration holds the positions, and FSDP2 cannot load integer buffers from rank 0.
        # Not on the meta device, where FSDP2's other ranks have their weights while rank 0 loads: it would lose them.
        device = "cpu" if self.weight.is_meta else self.weight.device
        self.register_buffer("rows", torch.tensor(rows[0], dtype=torch.long, device=device), persistent=False)
        self.active_weight = nn.Parameter(self.weight.detach()[self.rows])
        self.active_bias = None if self.bias is None else nn.Parameter(self.bias.detach()[self.rows])

    @property
    def rows_apart(self) -> bool:
        """Whether a state dict holds the active rows beside the weight, see `merge_into`."""
        return rows_are_kept_apart(self.weight)

    def active_rows(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The active rows `[k, in_features]` and their entries of the bias `[k]` as they are now, for autograd."""
        return self.active_weight, self.active_bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if self._shows_weight:
            return functional.linear(x, self.weight, self.bias)
        active_weight, active_bias = self.active_rows() if self._shown is None else self._shown
        in_place = self._weight_is_ours()
        if in_place:
            self._copy_active_rows(active_weight, active_bias)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if in_place:
            output: torch.Tensor = _RowLinear.apply(x, weight, bias, active_weight, active_bias, self.rows)
            return output
        active = functional.linear(
            x, active_weight.to(x.dtype), None if active_bias is None else active_bias.to(x.dtype)
        )
        return functional.linear(x, weight, bias).index_copy(-1, self.rows, active)

    def merged_weight(self) -> torch.Tensor:
        """The weight `[out_features, in_features]` with the active rows in place, detached."""
        return _with_rows(self.weight, self.rows, self.active_rows()[0])

    def merged_bias(self) -> torch.Tensor | None:
        """The bias `[out_features]` with the active entries in place, detached; None without bias."""
        active_bias = self.active_rows()[1]
        if self.bias is None or active_bias is None:
            return None if self.bias is None else self.bias.detach()
        return _with_rows(self.bias, self.rows, active_bias)

    def merge_into(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Turn this layer's entries in a state dict that keeps the active rows apart into an ordinary Linear's.

        Args:
            state_dict: with whole tensors; it is changed.
            prefix: of the layer's entries, `model.layers.3.mlp.down_proj.`.
        """
        for name in ("weight", "bias"):
            active = state_dict.pop(prefix + ACTIVE + name, None)
            if active is not None:
                self._put_rows(state_dict, prefix + name, active)

    def _put_rows(self, state_dict: dict[str, Any], name: str, active: torch.Tensor) -> None:
        full = state_dict[name]
        state_dict[name] = _with_rows(full, self.rows.to(full.device), active.to(full.device))

    def split(self) -> None:
        """Take the active rows anew from the weight, after it was written from outside."""
        with torch.no_grad():
            self.active_weight.copy_(self.weight[self.rows])
            if self.bias is not None and self.active_bias is not None:
                self.active_bias.copy_(self.bias[self.rows])

    def extra_repr(self) -> str:
        """Sizes, as `nn.Linear` prints them, and the number of active rows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"active_rows={len(self.rows)}"
        )

    def _copy_active_rows(self, active_weight: torch.Tensor, active_bias: torch.Tensor | None) -> None:
        """Copy the active rows into the weight.

        Every time: fused optimisers change a parameter without touching its version counter, so there is no telling
        whether it changed. Through `.data`, so that a product saved for backward stays valid: its weight has the same
        values unless the optimiser stepped in between.
        """
        self.weight.data.index_copy_(0, self.rows, active_weight.data.to(self.weight.dtype))
        if self.bias is not None and active_bias is not None:
            self.bias.data.index_copy_(0, self.rows, active_bias.data.to(self.bias.dtype))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.rows_apart:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        destination[prefix + "weight"] = self.merged_weight()
        bias = self.merged_bias()
        if bias is not None:
            destination[prefix + "bias"] = bias

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):
            loaded = state_dict.get(prefix + name)
            if loaded is not None and prefix + ACTIVE + name not in state_dict:
                active = full_tensor(loaded)[self.rows.to(loaded.device)]
                state_dict[prefix + ACTIVE + name] = shard_like(active, getattr(self, ACTIVE + name))
        super()._load_from_state_dict(state_dict, prefix, *args)


class _RowLinear(torch.autograd.Function):
    """`linear(x, weight, bias)`, where only the rows `active_*`, already part of `weight`, get a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        active_weight: torch.Tensor,
        active_bias: torch.Tensor | None,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x if active_weight.requires_grad else None, weight, rows)
        ctx.active_dtype = active_weight.dtype
        ctx.bias_dtype = None if active_bias is None else active_bias.dtype
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_output,) = grad_outputs
        x, weight, rows = ctx.saved_tensors
        needs_x, _, _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = grad_output @ weight
        if needs_weight or needs_bias:
            grad_active = grad_output.index_select(-1, rows).reshape(-1, len(rows))
            if needs_weight:
                grad_weight = (grad_active.T @ x.reshape(-1, x.shape[-1])).to(ctx.active_dtype)
            if needs_bias:
                grad_bias = grad_active.sum(dim=0).to(ctx.bias_dtype)
        return grad_x, None, None, grad_weight, grad_bias, None


def _with_rows(full: torch.Tensor, rows: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    return full.detach().index_copy(0, rows, active.detach().to(full.dtype))
