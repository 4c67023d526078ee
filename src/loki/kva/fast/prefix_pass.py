"""The prefix sweep: keys and values of the earlier positions for every interpolated row (definition `captum`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from loki.kva.fast.attention import Heads, attention_driven_by, causal_attention
from loki.kva.fast.layers import Layers
from loki.kva.fast.path import PathRow
from loki.kva.fast.record import Recording
from loki.kva.hooks import output_hook


@dataclass
class PrefixCache:
    """Keys and values of the earlier positions, by layer, for the rows whose path starts in a layer below.

    Attributes:
        keys: `[R_l * B, H_kv, T - 1, d]` for layer l, in the order of the rows.
        values: `[R_l * B, H_kv, T - 1, d_v]`.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class _LastLayerDone(Exception):  # noqa: N818 - it ends a sweep, it is no error
    """The last layer's keys and values are kept, nothing else of that layer is needed."""


@torch.no_grad()
def sweep_prefix(
    layers: Layers, recording: Recording, changes: Sequence[Tensor], rows: Sequence[PathRow], rows_per_pass: int
) -> PrefixCache:
    """Run the layers above every row's own, without gradients, and keep their keys and values.

    Args:
        layers: the model's decoder layers, with the attention seam installed.
        recording: whole runs of the prompts.
        changes: z - z0 of every layer, `[B, T, D]`.
        rows: rows to run, by layer.
        rows_per_pass: how many go through a layer together; fewer stay in a CPU's caches, more fill a GPU.
    """
    sweep = _PrefixSweep(layers, recording, changes, rows)
    # Nothing above the last layer reads keys and values.
    starting = [row for row in rows if row.layer < len(layers) - 1]
    with attention_driven_by(sweep.attend, layers.layers):
        for start in range(0, len(starting), rows_per_pass):
            sweep.run(starting[start : start + rows_per_pass], start)
    return sweep.cache


class _PrefixSweep:
    def __init__(
        self, layers: Layers, recording: Recording, changes: Sequence[Tensor], rows: Sequence[PathRow]
    ) -> None:
        self.cache = PrefixCache()
        self._layers = layers
        self._recording = recording
        self._changes = changes
        self._rows = rows
        self._batch = recording.prefix_keys[0].shape[0]
        self._first = 0  # index among all rows of the first running row
        self._running = 0

    def run(self, rows: Sequence[PathRow], first: int) -> None:
        """Carry `rows`, the first of which is number `first` of all, from their layers to the last."""
        self._first, self._running = first, 0
        starting = {layer: [row.alpha for row in found] for layer, found in groupby(rows, lambda row: row.layer)}
        hidden: Tensor | None = None
        try:
            for layer in range(rows[0].layer, len(self._layers)):
                hidden = self._pass_layer(layer, hidden, starting.get(layer, []))
                self._running += len(starting.get(layer, []))
        except _LastLayerDone:
            pass

    def attend(self, layer: int, heads: Heads) -> Tensor:
        running = self._running * self._batch
        if running:
            self._keep(layer, heads.rows(0, running))
        if layer == len(self._layers) - 1:
            raise _LastLayerDone
        return causal_attention(heads)

    def _keep(self, layer: int, heads: Heads) -> None:
        if layer not in self.cache.keys:
            count = sum(row.layer < layer for row in self._rows) * self._batch
            for kept, own in ((self.cache.keys, heads.key), (self.cache.values, heads.value)):
                kept[layer] = own.new_empty(count, own.shape[1], own.shape[2] - 1, own.shape[3])
        start = self._first * self._batch
        self.cache.keys[layer][start : start + heads.key.shape[0]] = heads.key[:, :, :-1]
        self.cache.values[layer][start : start + heads.key.shape[0]] = heads.value[:, :, :-1]

    def _pass_layer(self, layer: int, hidden: Tensor | None, alphas: list[float]) -> Tensor:
        """The hidden states behind `layer` of the rows that come from below and of those that start there."""
        call, module = self._recording.calls[layer], self._layers.layers[layer]
        scale = self._layers.residual_scales[layer]
        if not alphas:
            assert hidden is not None
            return call(module, hidden)
        entrance, change = self._recording.entrances[layer], self._changes[layer]
        steps = torch.tensor(alphas, dtype=change.dtype, device=change.device)[:, None, None, None] - 1
        if scale is not None:
            started = (entrance + scale * steps * change).flatten(0, 1)
            return started if hidden is None else torch.cat([call(module, hidden).to(started.device), started])
        interpolated = (self._recording.outputs[layer] + steps * change).flatten(0, 1)
        copies = entrance.repeat(len(alphas), 1, 1)
        entering = copies if hidden is None else torch.cat([hidden.to(copies.device), copies])
        with output_hook(
            self._layers.modules[layer], lambda output: torch.cat([output[: -len(interpolated)], interpolated])
        ):
            return call(module, entering)
