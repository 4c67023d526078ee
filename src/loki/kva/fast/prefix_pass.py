"""The prefix pass (definition `captum`): keys and values of the earlier positions, for every point's own run.

Under `captum` the MLP output is interpolated at all positions, so above a point's layer the earlier positions differ
from the original run too. Nothing is differentiated with respect to them: they are carried upwards without gradients,
and only their keys and values are kept.

Shapes: B prompts, T positions, D hidden size, K key-value heads, d and d_v head widths; P_l points of layer l;
R_l = P_0 + ... + P_(l-1) points whose layer is below l. Entry p * B + b is prompt b at point p.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from loki.kva.fast.attention import Heads, attention_computed_by, causal_attention
from loki.kva.fast.layers import Layers
from loki.kva.fast.path import PathPoint
from loki.kva.fast.record import Recording
from loki.kva.hooks import output_hook


@dataclass
class PrefixCache:
    """Keys and values of the earlier positions, by layer, for the points whose layer is below it.

    Attributes:
        keys: `[R_l * B, K, T - 1, d]` for layer l, in the order of the points.
        values: `[R_l * B, K, T - 1, d_v]`.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class _LastLayerDone(Exception):  # noqa: N818 - it ends a pass, it is not an error
    """The last layer's keys and values are kept, nothing else of that layer is needed."""


@torch.no_grad()
def run_prefixes(
    layers: Layers, recording: Recording, deltas: Sequence[Tensor], points: Sequence[PathPoint], points_at_once: int
) -> PrefixCache:
    """Run the layers above every point's own, without gradients, and keep their keys and values.

    Args:
        layers: the model's decoder layers; its attention is replaced.
        recording: the original run of the prompts, all positions kept.
        deltas: z - z0 of every layer, `[B, T, D]`.
        points: points to run, by layer.
        points_at_once: how many go through a layer together; fewer stay in a CPU's caches, more fill a GPU.
    """
    run = _PrefixPass(layers, recording, deltas, points)
    # Nothing above the last layer reads keys and values.
    below_last = [point for point in points if point.layer < len(layers) - 1]
    with attention_computed_by(run.attend, layers.layers):
        for start in range(0, len(below_last), points_at_once):
            run.carry(below_last[start : start + points_at_once], start)
    return run.cache


class _PrefixPass:
    def __init__(
        self, layers: Layers, recording: Recording, deltas: Sequence[Tensor], points: Sequence[PathPoint]
    ) -> None:
        self.cache = PrefixCache()
        self._layers = layers
        self._recording = recording
        self._deltas = deltas
        self._points = points
        self._batch = recording.prefix_keys[0].shape[0]  # B
        self._first = 0  # index among all points of the first that runs now
        self._running = 0  # how many points have branched off below the layer that runs now

    def carry(self, points: Sequence[PathPoint], first: int) -> None:
        """Carry `points`, the first of which is number `first` of all, from their layers to the last."""
        self._first, self._running = first, 0
        alphas_of = {layer: [point.alpha for point in own] for layer, own in groupby(points, lambda point: point.layer)}
        hidden: Tensor | None = None
        try:
            for layer in range(points[0].layer, len(self._layers)):
                alphas = alphas_of.get(layer, [])
                hidden = self._pass_layer(layer, hidden, alphas)
                self._running += len(alphas)
        except _LastLayerDone:
            pass

    def attend(self, layer: int, heads: Heads) -> Tensor:
        """Ordinary attention; the keys and values of points from below are kept."""
        if running := self._running * self._batch:
            self._keep(layer, heads.part(0, running))
        if layer == len(self._layers) - 1:
            raise _LastLayerDone
        return causal_attention(heads)

    def _keep(self, layer: int, heads: Heads) -> None:
        if layer not in self.cache.keys:
            count = sum(point.layer < layer for point in self._points) * self._batch  # R_l * B
            for kept, own in ((self.cache.keys, heads.key), (self.cache.values, heads.value)):
                kept[layer] = own.new_empty(count, own.shape[1], own.shape[2] - 1, own.shape[3])
        start = self._first * self._batch
        stop = start + heads.key.shape[0]
        self.cache.keys[layer][start:stop] = heads.key[:, :, :-1]  # [.., K, T, d] -> [.., K, T - 1, d]
        self.cache.values[layer][start:stop] = heads.value[:, :, :-1]

    def _pass_layer(self, layer: int, hidden: Tensor | None, alphas: list[float]) -> Tensor:
        """Hidden states behind `layer`: of the points from below (`hidden`), then of those that branch off here."""
        call, module = self._recording.calls[layer], self._layers.layers[layer]
        if not alphas:
            assert hidden is not None
            return call(module, hidden)
        states, delta = self._recording.branch_states[layer], self._deltas[layer]  # [B, T, D]
        # z0 + alpha (z - z0) = z + (alpha - 1)(z - z0), with alpha - 1 as [P_l, 1, 1, 1]
        steps = torch.tensor(alphas, dtype=delta.dtype, device=delta.device)[:, None, None, None] - 1
        if (scale := self._layers.residual_scales[layer]) is not None:
            # Behind a layer of the form r + c z only c (alpha - 1)(z - z0) is added: [P_l, B, T, D] -> [P_l * B, T, D]
            branches = (states + scale * steps * delta).flatten(0, 1)
            return branches if hidden is None else torch.cat([call(module, hidden).to(branches.device), branches])
        # Else copies of the original states enter the layer, and their MLP output is replaced inside it.
        interpolated = (self._recording.outputs[layer] + steps * delta).flatten(0, 1)  # [P_l * B, T, D]
        copies = states.repeat(len(alphas), 1, 1)
        entering = copies if hidden is None else torch.cat([hidden.to(copies.device), copies])
        with output_hook(
            self._layers.modules[layer], lambda output: torch.cat([output[: -len(interpolated)], interpolated])
        ):
            return call(module, entering)
