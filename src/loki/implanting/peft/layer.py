"""One MLP output projection with trainable rows."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.nn import functional

from loki.errors import LokiError
from loki.implanting.directions import along, digest
from loki.implanting.peft.base_weight import plain_weight


class AdapterLinear(nn.Linear):
    """A Linear without bias that computes in the dtype of its input, whatever the dtype of its weight.

    PEFT keeps adapters in float32. Casting the few rows is cheaper than casting the input (LoRA's way), which would
    also be saved for backward in float32. Weights are set by whoever makes it.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Set the weight to zero."""
        nn.init.zeros_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        return functional.linear(x, self.weight.to(x.dtype))


class InputDirections(nn.Module):
    """The fixed input directions `U` of an adapter that trains `dW_S = C U^T`.

    Args:
        directions: `[blocks, n, r]`, orthonormal in each block of `n` neighbouring inputs; NaN where they will be read
            with the adapter's weights.
        expected_digest: hash of the directions that may be read; None takes any.
    """

    weight: torch.Tensor

    def __init__(self, directions: torch.Tensor, expected_digest: str | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", directions)
        self._expected = expected_digest

    @property
    def count(self) -> int:
        """Number of directions, `blocks * r`."""
        return self.weight.shape[0] * self.weight.shape[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x U`: `[..., blocks * n]` to `[..., blocks * r]`, in the dtype of `x`."""
        blocks, size, _ = self.weight.shape
        by_block = x.reshape(*x.shape[:-1], blocks, size)
        return torch.einsum("...bn,bnr->...br", by_block, self.weight.to(x.dtype)).flatten(-2)

    def expand(self, coefficients: torch.Tensor) -> torch.Tensor:
        """`C U^T` `[k, blocks * n]` in at least float32, from `C` `[k, blocks * r]`."""
        return along(self.weight, coefficients)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(prefix + "weight")
        if given is not None and self._expected is not None and digest({0: given}) != self._expected:
            raise LokiError(
                f"{prefix}weight holds other input directions than the adapter was made with: save or fetch it again"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class RowAdapter(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A frozen projection `[..., d_ff] -> [..., D]` plus a trainable delta on `k` of its `D` rows, per adapter.

    The deltas are Linears in a `ModuleDict` (a `ParameterDict` cannot be wrapped by FSDP), the row indices plain
    tensors (PEFT 0.18 casts integer buffers to floating point).

    Args:
        base_layer: the projection, or another PEFT layer around it.
    """

    adapter_layer_names = ("loki_delta", "loki_A", "loki_B", "loki_C")
    other_param_names = ("loki_rows",)
    axis = 0  # the dimension of the weight that rows lie along
    experts = 1  # how many rows of one index there are

    # Inherited from PEFT, which has no types.
    get_base_layer: Callable[[], Any]
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = self._features()
        self.loki_delta = nn.ModuleDict()
        self.loki_A = nn.ModuleDict()
        self.loki_B = nn.ModuleDict()
        self.loki_C = nn.ModuleDict()
        self.loki_U = nn.ModuleDict()  # not among `adapter_layer_names`: PEFT would train and cast it
        self.loki_rows: dict[str, torch.Tensor] = {}
        self.merged_adapters: list[str] = []
        self._rows_before_merge: list[torch.Tensor] = []
        self._disable_adapters = False

    def _features(self) -> tuple[int, int]:
        base = self.get_base_layer()
        return base.in_features, base.out_features

    def update_layer(
        self,
        adapter_name: str,
        rows: list[int],
        rank: int | None,
        directions: "InputDirections | None" = None,
        *,
        inference_mode: bool,
    ) -> None:
        """Add an adapter of this name that changes nothing yet.

        Args:
            adapter_name: its name in the PEFT model.
            rows: the `k` row indices of the projection.
            rank: rank of the delta; None for full rows.
            directions: input directions to train along; None for all.
            inference_mode: whether the adapter stays frozen.
        """
        if directions is not None:
            self.loki_C[adapter_name] = AdapterLinear(directions.count, len(rows))
            self.loki_U[adapter_name] = directions.to(self.get_base_layer().weight.device)
        elif rank is None:
            self.loki_delta[adapter_name] = AdapterLinear(self.in_features, self.experts * len(rows))
        else:
            self.loki_A[adapter_name] = AdapterLinear(self.in_features, self.experts * rank)
            self.loki_B[adapter_name] = AdapterLinear(rank, self.experts * len(rows))
            initialise_rank_reduction(adapter_weight(self.loki_A, adapter_name))
        self.loki_rows[adapter_name] = torch.tensor(rows, device="cpu")
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base projection's output plus the active adapters' deltas at their rows."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        output: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return output
        for name in self.active_adapters:
            if name in self.loki_rows:
                output = output.index_add(-1, self._rows(name, output.device), self._delta(name, x).to(output.dtype))
        return output

    def _delta(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What an adapter adds to the outputs of its rows, `[..., k]`."""
        if name in self.loki_delta:
            delta: torch.Tensor = self.loki_delta[name](x)
        elif name in self.loki_C:
            directions, coefficients = self._directions(name), self._coefficients(name)
            # With more tokens than rows, multiplying out is less work than projecting every token.
            if x.numel() // x.shape[-1] > len(coefficients):
                with torch.autocast(x.device.type, enabled=False):
                    change = directions.expand(coefficients)
                delta = functional.linear(x, change.to(x.dtype))
            else:
                delta = self.loki_C[name](directions(x))
        else:
            delta = self.loki_B[name](self.loki_A[name](x))
        return delta

    def _coefficients(self, adapter_name: str) -> torch.Tensor:
        layer = self.loki_C[adapter_name]
        assert isinstance(layer, AdapterLinear)
        return layer.weight

    def _directions(self, adapter_name: str) -> "InputDirections":
        directions = self.loki_U[adapter_name]
        assert isinstance(directions, InputDirections)
        return directions

    def delta_rows(self, adapter_name: str) -> torch.Tensor:
        """The delta of this adapter's rows `[k, d_ff]` in at least float32."""
        if adapter_name in self.loki_delta:
            return _at_least_float32(adapter_weight(self.loki_delta, adapter_name))
        if adapter_name in self.loki_C:
            return self._directions(adapter_name).expand(adapter_weight(self.loki_C, adapter_name))
        up, down = adapter_weight(self.loki_B, adapter_name), adapter_weight(self.loki_A, adapter_name)
        return _at_least_float32(up) @ _at_least_float32(down)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the deltas to the base weight in float32, and round once. The original rows are kept for `unmerge`.

        Args:
            safe_merge: refuse a delta that makes a weight infinite or NaN, before anything is written.
            adapter_names: adapters to merge; None for the active ones.

        Raises:
            LokiError: if the base weight is quantised or sharded, or `safe_merge` finds a value that is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.loki_rows:
                continue
            weight = self._mergeable_weight()
            rows = self._rows(name, weight.device)
            original = weight.index_select(self.axis, rows)
            merged = added(original, self._as_held(self.delta_rows(name)))
            if safe_merge and not merged.isfinite().all():
                raise LokiError(f"adapter {name} makes weights that are not finite: it is broken, train it again")
            weight.index_copy_(self.axis, rows, merged)
            self._rows_before_merge.append(original)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put back the original rows, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            weight = self._mergeable_weight()
            original = self._rows_before_merge.pop()
            weight.index_copy_(self.axis, self._rows(self.merged_adapters.pop(), weight.device), original.to(weight))

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter.

        Raises:
            LokiError: if it is merged: its original rows would be lost.
        """
        if adapter_name in self.merged_adapters:
            raise LokiError(f"adapter {adapter_name} is merged: call unmerge_adapter() before deleting it")
        super().delete_adapter(adapter_name)
        if adapter_name in self.loki_U:
            del self.loki_U[adapter_name]

    def _rows(self, adapter_name: str, device: torch.device) -> torch.Tensor:
        rows = self.loki_rows[adapter_name]
        if rows.device != device:
            rows = self.loki_rows[adapter_name] = rows.to(device)
        return rows

    def _as_held(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows, one below the other, in the form that the weight holds them in."""
        return rows

    def _mergeable_weight(self) -> torch.Tensor:
        base = self.get_base_layer()
        weight = plain_weight(base)
        if weight is None:
            raise LokiError(
                f"cannot merge into a quantised, sharded or offloaded weight ({type(base).__name__}): load the base "
                "model in bfloat16 on one device, load the adapter on it with PeftModel.from_pretrained and merge there"
            )
        return weight


def adapter_weight(layers: nn.ModuleDict, adapter_name: str) -> torch.Tensor:
    """The weight of one adapter in `loki_delta`, `loki_A`, `loki_B` or `loki_C`, detached."""
    layer = layers[adapter_name]
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach()


def initialise_rank_reduction(weight: torch.Tensor) -> None:
    """Fill `loki_A` `[r, d_ff]` as PEFT fills LoRA's: uniform, from `kaiming_uniform_(a=sqrt(5))`."""
    nn.init.kaiming_uniform_(weight, a=5**0.5)


def added(base: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """`base + change`, added in at least float32, and rounded once to the type of `base`."""
    return (_at_least_float32(base) + change.to(base.device)).to(base.dtype)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
