"""Experts whose output projections, held in one parameter, have trainable rows."""

from typing import Any

import torch
from torch import nn

from loki.errors import LokiError
from loki.implanting.sharding import ACTIVE, under_fsdp
from loki.implanting.switching import SwitchableRows
from loki.models.experts import FusedExperts

_WEIGHT, _BIAS = "down_proj", "down_proj_bias"
_classes: dict[type[nn.Module], type[nn.Module]] = {}


class LoKIExperts(SwitchableRows):
    """Experts of which only the active rows of `down_proj` are trained, the same ones in every expert.

    Transformers computes all experts from one parameter, by one of several implementations, so the module keeps its
    class's own forward: within it `down_proj` is the weight with the active rows in place. Backward keeps the gradient
    of the active rows alone, once that of the whole weight, one layer at a time, has been computed. A state dict holds
    what it held before the split. Made by `split_experts`, which mixes this class into that of the module.

    Attributes:
        rows: `[k]`, indices of the active rows.
        axis: the dimension of `down_proj` that rows lie along, 1 or 2.
        in_features: `d_ff` of an expert.
        active_weight: `[E * k, d_ff]`, trainable; the rows of the first expert, then those of the next.
        active_bias: `[E * k]`, trainable, or None.
    """

    rows: torch.Tensor
    axis: int
    in_features: int
    active_weight: nn.Parameter
    active_bias: nn.Parameter | None
    _now: dict[str, torch.Tensor] | None

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The frozen parameter of all experts."""
        return self._held(_WEIGHT)

    def active_rows(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The active rows `[E * k, d_ff]` and their entries of the bias `[E * k]` as they are now, for autograd."""
        return self.active_weight, self.active_bias

    def forward(self, *args: Any, **options: Any) -> Any:
        """As the experts' own class, with the active rows in place."""
        weight, bias = self.active_rows() if self._shown is None else self._shown
        self._now = {_WEIGHT: self._with_rows(_WEIGHT, weight)}
        if bias is not None:
            self._now[_BIAS] = self._with_rows(_BIAS, bias)
        try:
            return super().forward(*args, **options)
        finally:
            self._now = None

    def split(self) -> None:
        """Take the active rows anew from the weight, after it was written from outside."""
        with torch.no_grad():
            self.active_weight.copy_(self._taken(_WEIGHT))
            if self.active_bias is not None:
                self.active_bias.copy_(self._taken(_BIAS))

    def _held(self, name: str) -> torch.Tensor:
        held = self._parameters[name]
        assert held is not None
        return held

    def _axis(self, name: str) -> int:
        return self.axis if name == _WEIGHT else 1

    def _taken(self, name: str) -> torch.Tensor:
        """The rows in the parameter `name`: `[E * k, d_ff]` or `[E * k]`."""
        return by_row(self._held(name).detach().index_select(self._axis(name), self.rows), self._axis(name))

    def _placed(self, name: str, active: torch.Tensor) -> torch.Tensor:
        """Active rows in the form that `index_copy` puts them into the parameter `name` in."""
        held = self._held(name)
        return as_held(active, len(held), self._axis(name)).to(held.dtype)

    def _with_rows(self, name: str, active: torch.Tensor) -> torch.Tensor:
        held, axis = self._held(name), self._axis(name)
        if not self._weight_is_ours():
            return held.index_copy(axis, self.rows, self._placed(name, active))
        # Every time, and through `.data`, as in `LoKILinear`.
        held.data.index_copy_(axis, self.rows, self._placed(name, active.data))
        placed: torch.Tensor = _PlacedRows.apply(held, active, self.rows, axis)
        return placed

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight, bias = self.active_rows()
        for name, active in ((_WEIGHT, weight), (_BIAS, bias)):
            if active is not None:
                rows = self._placed(name, active.detach())
                destination[prefix + name] = self._held(name).detach().index_copy(self._axis(name), self.rows, rows)
        for name in ("weight", "bias"):
            destination.pop(f"{prefix}{ACTIVE}{name}", None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, kind in ((_WEIGHT, "weight"), (_BIAS, "bias")):
            loaded = state_dict.get(prefix + name)
            if loaded is not None and f"{prefix}{ACTIVE}{kind}" not in state_dict:
                axis = self._axis(name)
                state_dict[f"{prefix}{ACTIVE}{kind}"] = by_row(
                    loaded.index_select(axis, self.rows.to(loaded.device)), axis
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def split_experts(experts: FusedExperts, rows: list[int]) -> None:
    """Make rows of every expert trainable, and freeze the experts otherwise.

    Args:
        experts: the experts; their module becomes a `LoKIExperts`.
        rows: indices of the rows, sorted.

    Raises:
        LokiError: under FSDP, which spreads the parameters over the processes.
    """
    if under_fsdp():
        raise LokiError("--experts all does not work under FSDP: use several processes without it, or --experts shared")
    module: Any = experts.module
    module.requires_grad_(False)
    own = type(module)
    if own not in _classes:
        _classes[own] = type(
            f"LoKI{own.__name__}", (LoKIExperts, own), {name: _placed(name) for name in (_WEIGHT, _BIAS)}
        )
    weight = module._parameters[_WEIGHT]
    module.axis, module._now = experts.axis, None
    module.in_features = weight.shape[3 - experts.axis]
    device = "cpu" if weight.is_meta else weight.device
    module.register_buffer("rows", torch.tensor(rows, dtype=torch.long, device=device), persistent=False)
    module.__class__ = _classes[own]
    module.active_weight = nn.Parameter(module._taken(_WEIGHT).clone())
    biased = module._parameters.get(_BIAS) is not None
    module.active_bias = nn.Parameter(module._taken(_BIAS).clone()) if biased else None


def by_row(taken: torch.Tensor, axis: int) -> torch.Tensor:
    """Rows of all experts `[E, k, d_ff]`, `[E, d_ff, k]` or `[E, k]`, along `axis`, as `[E * k, d_ff]` or `[E * k]`."""
    return taken.movedim(axis, 1).flatten(0, 1)


def as_held(rows: torch.Tensor, experts: int, axis: int) -> torch.Tensor:
    """The inverse of `by_row`: rows of all experts in the form that their common parameter holds them in."""
    return by_expert(rows, experts).movedim(1, axis)


def by_expert(stacked: torch.Tensor, experts: int) -> torch.Tensor:
    """`[experts * n, ...]` as `[experts, n, ...]`."""
    return stacked.reshape(experts, len(stacked) // experts, *stacked.shape[1:])


def _placed(name: str) -> property:
    """The parameter `name`, with the active rows in place while the experts compute."""

    def get(self: LoKIExperts) -> torch.Tensor:
        return self._held(name) if self._now is None else self._now[name]

    return property(get)


class _PlacedRows(torch.autograd.Function):
    """The weight, which has the active rows in it already; they alone get a gradient."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, active: torch.Tensor, rows: torch.Tensor, axis: int) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.axis, ctx.dtype = axis, active.dtype
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        taken = grad_outputs[0].index_select(ctx.axis, rows)
        return None, by_row(taken, ctx.axis).to(ctx.dtype), None, None
