# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge

from .config import LokiConfig


class LokiLinear(nn.Linear):
    """A trainable `nn.Linear` without bias that computes in the dtype of its input: casting a few rows is cheap."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class LokiDirections(nn.Module):
    """Fixed, orthonormal input directions `[blocks, n, r]`, for each block of `n` neighbouring inputs."""

    def __init__(self, directions: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", directions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks, size, _ = self.weight.shape
        by_block = x.reshape(*x.shape[:-1], blocks, size)
        return torch.einsum("...bn,bnr->...br", by_block, self.weight.to(x.dtype)).flatten(-2)

    def expand(self, coefficients: torch.Tensor) -> torch.Tensor:
        """`[k, blocks * r]` coefficients to `[k, blocks * n]` rows, in at least float32."""
        coefficients = _at_least_float32(coefficients)
        directions = self.weight.to(coefficients.dtype)
        by_block = coefficients.view(len(coefficients), len(directions), -1).transpose(0, 1)
        return (by_block @ directions.transpose(1, 2)).transpose(0, 1).reshape(len(coefficients), -1)


class LokiLayer(BaseTunerLayer):
    # List all names of layers that may contain adapter weights
    adapter_layer_names = ("loki_delta", "loki_A", "loki_B", "loki_C")
    # All names of other parameters that may contain adapter-related parameters. loki_U is saved as well, but is neither
    # trained nor cast.
    other_param_names = ("loki_rows",)

    def __init__(self, base_layer: nn.Module, **kwargs) -> None:
        self.base_layer = base_layer
        self.loki_delta = nn.ModuleDict({})
        self.loki_A = nn.ModuleDict({})
        self.loki_B = nn.ModuleDict({})
        self.loki_C = nn.ModuleDict({})
        self.loki_U = nn.ModuleDict({})
        self.loki_rows: dict[str, torch.Tensor] = {}
        # Mark the weight as unmerged
        self._disable_adapters = False
        self.merged_adapters = []
        # What a merge has replaced: floating point numbers cannot be subtracted to the bit.
        self._rows_before_merge: list[torch.Tensor] = []
        self.kwargs = kwargs

        base_layer = self.get_base_layer()
        # Layers of quantization backends are not necessarily nn.Linears.
        if not (hasattr(base_layer, "in_features") and hasattr(base_layer, "out_features")):
            raise TypeError(f"Unsupported layer type {type(base_layer)}: LoKI adapts linear layers.")
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    def update_layer(
        self,
        adapter_name: str,
        rows: list[int],
        directions: torch.Tensor | None,
        config: LokiConfig,
        inference_mode: bool = False,
        **kwargs,
    ) -> None:
        """Add an adapter.

        Args:
            adapter_name: The name of the adapter.
            rows: The `k` rows to train.
            directions: The input directions to train along, `[blocks, n, r]`; None for all.
            config: The configuration of the adapter.
            inference_mode: Whether the adapter stays frozen.
        """
        if rows[-1] >= self.out_features:
            raise ValueError(f"Row {rows[-1]} does not exist: the target module has {self.out_features} rows.")
        if directions is not None:
            blocks, size, count = directions.shape
            if blocks * size != self.in_features:
                raise ValueError(f"The directions are for {blocks * size} inputs, the module has {self.in_features}.")
            self.loki_C[adapter_name] = LokiLinear(blocks * count, len(rows))
            self.loki_U[adapter_name] = LokiDirections(directions)
        elif config.rank is None:
            self.loki_delta[adapter_name] = LokiLinear(self.in_features, len(rows))
        else:
            self.loki_A[adapter_name] = LokiLinear(self.in_features, config.rank)
            self.loki_B[adapter_name] = LokiLinear(config.rank, len(rows))
        self.loki_rows[adapter_name] = torch.tensor(rows, device="cpu")
        self.reset_loki_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        if adapter_name in self.loki_U:
            self.loki_U[adapter_name].to(self.get_base_layer().weight.device)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def reset_loki_parameters(self, adapter_name: str, init_weights: bool = True) -> None:
        if adapter_name in self.loki_A:
            nn.init.kaiming_uniform_(self.loki_A[adapter_name].weight, a=math.sqrt(5))
        for layers in (self.loki_delta, self.loki_B, self.loki_C):
            if adapter_name in layers:
                if init_weights:
                    nn.init.zeros_(layers[adapter_name].weight)
                else:
                    nn.init.normal_(layers[adapter_name].weight, std=0.1)

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name in self.merged_adapters:
            raise ValueError(f"The adapter {adapter_name} is merged: unmerge it before it is deleted.")
        super().delete_adapter(adapter_name)
        if adapter_name in self.loki_U:
            del self.loki_U[adapter_name]


class Linear(nn.Module, LokiLayer):
    # LoKI implemented in a dense layer
    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        rows: list[int],
        directions: torch.Tensor | None,
        config: LokiConfig,
        **kwargs,
    ) -> None:
        super().__init__()
        LokiLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, rows, directions, config, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """
        Merge the active adapter weights into the base weights

        The sum is made in float32 and rounded once. No other row is written.

        Args:
            safe_merge (`bool`, *optional*):
                If True, check for NaNs before the base weights are changed.
            adapter_names (`list[str]`, *optional*):
                The names of the adapters that should be merged. If None, all active adapters will be merged.
        """
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if adapter_name not in self.loki_rows:
                continue
            weight = self._mergeable_weight()
            rows = self._rows(adapter_name, weight.device)
            original = weight[rows]
            delta = self.get_delta_rows(adapter_name).to(weight.device)
            merged = (_at_least_float32(original) + delta).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter_name} seems to be broken")
            weight[rows] = merged
            self._rows_before_merge.append(original)
            self.merged_adapters.append(adapter_name)

    def unmerge(self) -> None:
        """Put back the rows that merging has replaced, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.")
            return
        while self.merged_adapters:
            weight = self._mergeable_weight()
            original = self._rows_before_merge.pop()
            weight[self._rows(self.merged_adapters.pop(), weight.device)] = original.to(weight)

    def get_delta_rows(self, adapter_name: str) -> torch.Tensor:
        """The change of the adapter's rows, `[k, in_features]`, in at least float32."""
        if adapter_name in self.loki_delta:
            return _at_least_float32(self.loki_delta[adapter_name].weight.detach())
        if adapter_name in self.loki_C:
            return self.loki_U[adapter_name].expand(self.loki_C[adapter_name].weight.detach())
        up, down = self.loki_B[adapter_name].weight.detach(), self.loki_A[adapter_name].weight.detach()
        return _at_least_float32(up) @ _at_least_float32(down)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """The change of the whole weight, `[out_features, in_features]`, which is zero in all other rows."""
        delta = self.get_delta_rows(adapter_name)
        dense = delta.new_zeros(self.out_features, self.in_features)
        dense[self._rows(adapter_name, delta.device)] = delta
        return dense

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for adapter_name in self.active_adapters:
            if adapter_name in self.loki_rows:
                rows = self._rows(adapter_name, result.device)
                result = result.index_add(-1, rows, self._delta_output(adapter_name, x).to(result.dtype))
        return result

    def _delta_output(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """What the adapter adds to the outputs of its rows, `[..., k]`."""
        if adapter_name in self.loki_delta:
            return self.loki_delta[adapter_name](x)
        if adapter_name in self.loki_B:
            return self.loki_B[adapter_name](self.loki_A[adapter_name](x))
        coefficients, directions = self.loki_C[adapter_name], self.loki_U[adapter_name]
        # With more tokens than rows, multiplying out is less work than projecting every token.
        if x.numel() // x.shape[-1] > len(coefficients.weight):
            with torch.autocast(x.device.type, enabled=False):
                change = directions.expand(coefficients.weight)
            return F.linear(x, change.to(x.dtype))
        return coefficients(directions(x))

    def _rows(self, adapter_name: str, device: torch.device) -> torch.Tensor:
        rows = self.loki_rows[adapter_name]
        if rows.device != device:
            rows = self.loki_rows[adapter_name] = rows.to(device)
        return rows

    def _mergeable_weight(self) -> torch.Tensor:
        base_layer = self.get_base_layer()
        if not isinstance(base_layer, nn.Linear) or not base_layer.weight.is_floating_point():
            raise TypeError(
                f"Cannot merge LoKI into {type(base_layer)}: merge it into the base model without quantization."
            )
        return base_layer.weight.data

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "loki." + super().__repr__()


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
