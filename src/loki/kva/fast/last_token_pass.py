"""The last-token pass: all points at the last position, in one batch that grows from layer to layer, with gradients.

Run 0 is the original run of every prompt. A point's run is the original one up to the point's layer; there a copy
branches off with the interpolated MLP output in it, and goes on through the layers above:

    layer 0          layer 1          layer 2          logits
    run 0 -------------------------------------------- original
          `- points of layer 0 -----------------------
                           `- points of layer 1 ------
                                            `- points of layer 2

Shapes: B prompts, P points in all, P_l points of layer l, R_l = 1 + P_0 + ... + P_(l-1) runs that enter layer l
(R = 1 + P in the end), D hidden size, V vocabulary. Each run holds one token per prompt, so what enters layer l is
`[R_l * B, 1, D]`; entry r * B + b is prompt b in run r.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.fast.attention import Heads, attention_computed_by, last_token_attention
from loki.kva.fast.layers import Layers, repeat_batch, split_call
from loki.kva.fast.path import PathPoint
from loki.kva.fast.prefix_pass import PrefixCache
from loki.kva.fast.record import Recording
from loki.kva.hooks import input_hook, output_hook
from loki.kva.prompts import PromptBatch
from loki.kva.settings import Quantity


@dataclass(frozen=True)
class LastTokenResult:
    """What the last-token pass gives.

    Attributes:
        logits: of the original run, `[B, V]`, float32.
        values: F in every run, the original one first, `[R, B]`.
        gradients: by layer, the weighted sum over its points of dF/dz at the last position, `[B, D]` float32.
    """

    logits: Tensor
    values: Tensor
    gradients: dict[int, Tensor]


def run_last_token(
    model: PreTrainedModel,
    layers: Layers,
    recording: Recording,
    batch: PromptBatch,
    *,
    points: Sequence[PathPoint],
    original_weight: float,
    deltas: Sequence[Tensor],
    prefixes: PrefixCache | None,
    targets: Tensor,
    quantity: Quantity,
) -> LastTokenResult:
    """Gradients of F at every point, by one forward and one backward pass over single tokens.

    Args:
        model: with its attention replaced.
        layers: its decoder layers.
        recording: the original run of the prompts.
        batch: the prompts.
        points: points to compute, by layer.
        original_weight: weight of the original run's gradients for every layer; 0 leaves them out.
        deltas: z - z0 at the last position, by layer, `[B, D]`.
        prefixes: the points' own keys and values of the earlier positions; None where all share the original ones.
        targets: target token ids, `[B]`.
        quantity: what F is.
    """
    run = _LastTokenPass(layers, recording, points, original_weight, deltas, prefixes)
    with torch.enable_grad(), ExitStack() as hooks:
        hooks.enter_context(attention_computed_by(run.attend, layers.layers))
        for index, (layer, module) in enumerate(zip(layers.layers, layers.modules, strict=True)):
            hooks.enter_context(input_hook(layer, partial(run.enter_layer, index)))
            hooks.enter_context(output_hook(module, partial(run.replace_output, index)))
            hooks.enter_context(output_hook(layer, partial(run.leave_layer, index)))
        logits = model(**batch.last_token_inputs()).logits[:, -1].float()  # [R * B, V]
        logits = logits.reshape(-1, len(batch), logits.shape[-1])  # [R, B, V]
        targets = targets.to(logits.device)
        chosen = logits.gather(-1, targets.expand(len(logits), -1)[..., None])[..., 0]  # [R, B]
        if quantity is Quantity.PROBABILITY:
            # dp/dz = p * d(log p)/dz: the same number, but p's own gradient underflows in low precision.
            chosen = chosen - logits.logsumexp(-1)
        # Runs do not reach each other, so the gradient of the sum holds every run's own.
        gradients = torch.autograd.grad(chosen.sum(), [*run.leaves.values(), *run.original_leaves.values()])
    chosen = chosen.detach()
    values = chosen.exp() if quantity is Quantity.PROBABILITY else chosen
    factors = values if quantity is Quantity.PROBABILITY else torch.ones_like(values)
    return LastTokenResult(logits[0].detach(), values, run.weighted(gradients, factors))


class _LastTokenPass:
    """The hooks of the pass, and the tensors that gradients are taken at.

    `leaves[l]`, `[P_l, B, D]`, are the interpolated outputs; `original_leaves[l]`, `[B, D]`, are zeros added to
    the outputs of run 0.
    """

    def __init__(
        self,
        layers: Layers,
        recording: Recording,
        points: Sequence[PathPoint],
        original_weight: float,
        deltas: Sequence[Tensor],
        prefixes: PrefixCache | None,
    ) -> None:
        self._layers = layers
        self._recording = recording
        self._points = points
        self._original_weight = original_weight
        self._prefixes = prefixes
        self._batch = recording.logits.shape[0]  # B
        self._original_output = torch.empty(0)  # [B, 1, D], of the layer that runs now
        self._alphas = {
            index: [point.alpha for point in points if point.layer == index] for index in range(len(layers))
        }
        self.leaves: dict[int, Tensor] = {}
        self.original_leaves: dict[int, Tensor] = {}
        for index, alphas in self._alphas.items():
            z = recording.last_outputs[index]  # [B, D]
            if alphas:
                # z0 + alpha (z - z0) = z + (alpha - 1)(z - z0): [P_l, 1, 1] * [B, D] -> [P_l, B, D]
                steps = torch.tensor(alphas, dtype=z.dtype, device=z.device)[:, None, None] - 1
                self.leaves[index] = (z + steps * deltas[index]).requires_grad_()
            if original_weight:
                self.original_leaves[index] = torch.zeros_like(z).requires_grad_()

    def enter_layer(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a layer: where its points must branch off inside it, append copies of run 0 for them."""
        hidden, arguments, keywords = split_call(arguments, keywords)  # [R_l * B, 1, D]
        if self._branches_inside(layer):
            copies = hidden[: self._batch].detach().repeat(len(self._alphas[layer]), 1, 1)
            hidden = torch.cat([hidden, copies])  # [(R_l + P_l) * B, 1, D]
        # What the model gives the layer beside hidden states (rotary embeddings, masks) was made for B entries.
        arguments, keywords = repeat_batch((arguments, keywords), self._batch, hidden.shape[0] // self._batch)
        return (hidden, *arguments), keywords

    def attend(self, layer: int, heads: Heads) -> Tensor:
        """Every run's token over its prefix: the original one, or the run's own."""
        keys, values = self._recording.prefix_keys[layer], self._recording.prefix_values[layer]  # [B, K, T - 1, d]
        visible = self._recording.visible[layer]  # [B or 1, T - 1]
        if self._prefixes is None or layer not in self._prefixes.keys:
            return last_token_attention(heads, keys, values, visible)
        own_keys, own_values = self._prefixes.keys[layer], self._prefixes.values[layer]  # [(R_l - 1) * B, K, T - 1, d]
        start, stop = self._batch, self._batch + len(own_keys)
        own_visible = None if visible is None else visible.repeat(len(own_keys) // len(visible), 1)
        outputs = [
            last_token_attention(heads.part(0, start), keys, values, visible),
            last_token_attention(heads.part(start, stop), own_keys, own_values, own_visible),
        ]
        if stop < len(heads.query):  # copies of run 0 that branch off inside this layer, behind the attention
            outputs.append(last_token_attention(heads.part(stop, len(heads.query)), keys, values, visible))
        return torch.cat(outputs)

    def replace_output(self, layer: int, output: Tensor) -> Tensor:
        """Behind the MLP: put the leaves into `output`, `[R_l * B, 1, D]` (with copies `[(R_l + P_l) * B, 1, D]`)."""
        original, others = output[: self._batch], output[self._batch :]
        if layer in self.original_leaves:
            original = original + self.original_leaves[layer][:, None]
        self._original_output = original.detach()
        if self._branches_inside(layer):
            leaves = self.leaves[layer].flatten(0, 1)[:, None]  # [P_l, B, D] -> [P_l * B, 1, D]
            return torch.cat([original, others[: -len(leaves)], leaves])
        return torch.cat([original, others])

    def leave_layer(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Behind a layer of the plain residual form r + c z: append the runs of its points, r + c z_point."""
        scale = self._layers.residual_scales[layer]
        if scale is None or not self._alphas[layer]:
            return None
        original = hidden[: self._batch].detach()  # [B, 1, D]
        branches = original + scale * (self.leaves[layer][:, :, None] - self._original_output)  # [P_l, B, 1, D]
        return torch.cat([hidden, branches.flatten(0, 1)])  # [R_(l+1) * B, 1, D]

    def weighted(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[int, Tensor]:
        """By layer, sum_p weight_p * factor_p * gradient_p over its points and the original run, `[B, D]`.

        Args:
            gradients: of all leaves, `[P_l, B, D]`, then of the original leaves, `[B, D]`.
            factors: `[R, B]`; what each run's gradient is multiplied by.
        """
        sums: dict[int, Tensor] = {}
        first = 1  # run 0 is the original one
        for layer, gradient in zip(self.leaves, gradients, strict=False):
            stop = first + len(gradient)
            weights = torch.tensor([point.weight for point in self._points[first - 1 : stop - 1]])
            scaled = weights[:, None].to(factors) * factors[first:stop]  # [P_l, B]
            sums[layer] = torch.einsum("pb,pbd->bd", scaled.to(gradient.device), gradient.float())
            first = stop
        for layer, gradient in zip(self.original_leaves, gradients[len(self.leaves) :], strict=True):
            share = self._original_weight * factors[0].to(gradient.device)[:, None] * gradient.float()
            sums[layer] = sums[layer] + share if layer in sums else share
        return sums

    def _branches_inside(self, layer: int) -> bool:
        """Whether the layer's points cannot branch off behind it, because a normalisation follows its MLP."""
        return bool(self._alphas[layer]) and self._layers.residual_scales[layer] is None
