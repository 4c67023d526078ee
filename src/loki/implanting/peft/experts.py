"""The experts of one layer, with trainable rows in every expert's output projection."""

import threading
from typing import Any

import torch
from torch.func import functional_call

from loki.errors import LokiError
from loki.implanting.experts import as_held, by_expert
from loki.implanting.peft.layer import InputDirections, RowAdapter, added
from loki.implanting.sharding import under_fsdp
from loki.models.experts import FusedExperts

_WEIGHT = "down_proj"
# Rows that are put into a weight for one call must not be taken for the base's by another thread.
_writing = threading.RLock()


class ExpertsAdapter(RowAdapter):
    """Frozen experts plus a trainable delta on the same `k` rows of every expert's `down_proj`, per adapter.

    Transformers computes all experts from one parameter, by one of several implementations, so the experts compute as
    they are, with a weight that has base and delta added up in its rows: rounded once to the weight's type, so that
    merged experts put out the same, to the last bit. Where gradients are wanted that weight is a copy, which backward
    needs; elsewhere the rows are put in and taken out again. Biases stay the base's, as under a `RowAdapter`.

    Args:
        experts: the experts of one layer.

    Attributes:
        axis: the dimension of `down_proj` that rows lie along, 1 or 2.
        experts: number of experts E. `loki_delta` holds `[E * k, d_ff]`, the rows of the first expert, then those of
            the next; or `loki_B` `[E * k, r]` and `loki_A` `[E * r, d_ff]`, of which each expert multiplies its own.
    """

    def __init__(self, experts: FusedExperts) -> None:
        self.axis = experts.axis
        super().__init__(experts.module)
        self.experts = len(self._held())

    def _features(self) -> tuple[int, int]:
        shape = self._held().shape
        return shape[3 - self.axis], shape[self.axis]

    def update_layer(
        self,
        adapter_name: str,
        rows: list[int],
        rank: int | None,
        directions: InputDirections | None = None,
        *,
        inference_mode: bool,
    ) -> None:
        """Add an adapter of this name that changes nothing yet; see `RowAdapter.update_layer`.

        Raises:
            LokiError: under FSDP, which spreads the parameters over the processes.
        """
        if under_fsdp():
            raise LokiError("--experts all does not work under FSDP: use several processes without it, or shared")
        super().update_layer(adapter_name, rows, rank, directions, inference_mode=inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the experts, with the active adapters' deltas in their rows.

        Raises:
            LokiError: if the weight is not on a device (offloaded).
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        idle = self.disable_adapters or self.merged
        active = [] if idle else [name for name in self.active_adapters if name in self.loki_rows]
        if not active:
            return self.base_layer(*args, **kwargs)
        if self._held().is_meta:
            raise LokiError("--experts all: the experts are offloaded: load the base model on devices that hold it")
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            weight = self._held()
            for name in active:
                rows = self._rows(name, weight.device)
                weight = weight.index_copy(self.axis, rows, self._changed(weight, name))
            return functional_call(self.base_layer, {_WEIGHT: weight}, args, kwargs)
        with _writing:
            return self._with_rows_put_in(active, args, kwargs)

    def delta_rows(self, adapter_name: str) -> torch.Tensor:
        """The delta of this adapter's rows in all experts, `[E * k, d_ff]`, in at least float32, detached."""
        return self._delta_rows(adapter_name).detach()

    def _delta_rows(self, adapter_name: str) -> torch.Tensor:
        """The same, for autograd."""
        if adapter_name in self.loki_delta:
            return _wide(self.loki_delta, adapter_name)
        up, down = _wide(self.loki_B, adapter_name), _wide(self.loki_A, adapter_name)
        with torch.autocast(up.device.type, enabled=False):
            return (by_expert(up, self.experts) @ by_expert(down, self.experts)).flatten(0, 1)

    def _changed(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """An adapter's rows as `weight` holds them, with its delta."""
        rows = weight.index_select(self.axis, self._rows(name, weight.device))
        return added(rows, self._as_held(self._delta_rows(name)))

    def _with_rows_put_in(self, active: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        weight, originals = self._held().data, []
        try:
            for name in active:
                rows = self._rows(name, weight.device)
                changed = self._changed(weight, name)
                originals.append((rows, weight.index_select(self.axis, rows)))
                weight.index_copy_(self.axis, rows, changed)
            return self.base_layer(*args, **kwargs)
        finally:
            for rows, original in reversed(originals):
                weight.index_copy_(self.axis, rows, original)

    def _as_held(self, rows: torch.Tensor) -> torch.Tensor:
        return as_held(rows, self.experts, self.axis)

    def _held(self) -> torch.Tensor:
        """The frozen parameter of all experts."""
        held: torch.Tensor = self.get_base_layer().get_parameter(_WEIGHT)
        return held

    def _mergeable_weight(self) -> torch.Tensor:
        return self._held().data

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT looks for a parameter of another name.
        held = self._held()
        for layers in (self.loki_delta, self.loki_A, self.loki_B):
            if adapter_name in layers and not any(part.is_meta for part in layers.parameters()):
                layers[adapter_name].to(held.device if device is None else device, held.dtype)


def _wide(layers: torch.nn.ModuleDict, adapter_name: str) -> torch.Tensor:
    weight = layers[adapter_name].get_parameter("weight")
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
