"""The last sweep: all rows at the last position in one batch that grows from layer to layer, with gradients."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.fast.attention import Heads, attention_driven_by, last_token_attention
from loki.kva.fast.layers import Layers, repeat_rows, split_call
from loki.kva.fast.path import PathRow
from loki.kva.fast.prefix_pass import PrefixCache
from loki.kva.fast.prompt_batch import PromptBatch
from loki.kva.fast.record import Recording
from loki.kva.hooks import input_hook, output_hook


@dataclass(frozen=True)
class LastSweepResult:
    """What the last sweep gives.

    Attributes:
        logits: of the unperturbed row, `[B, V]`, float32.
        values: F of every row, `[R, B]`.
        gradients: by layer, the weighted sum over its rows of dF/dz at the last position, `[B, D]` float32.
    """

    logits: Tensor
    values: Tensor
    gradients: dict[int, Tensor]


def sweep_last_token(
    model: PreTrainedModel,
    layers: Layers,
    recording: Recording,
    batch: PromptBatch,
    *,
    rows: Sequence[PathRow],
    real_weight: float,
    changes: Sequence[Tensor],
    prefixes: PrefixCache | None,
    targets: Tensor,
    quantity: str,
) -> LastSweepResult:
    """Gradients of F at every row, by one forward and one backward pass over single tokens.

    Args:
        model: with the attention seam installed.
        layers: its decoder layers.
        recording: the unperturbed run of the prompts.
        batch: the prompts.
        rows: rows to run, by layer.
        real_weight: weight of the unperturbed row's gradients for every layer; 0 leaves them out.
        changes: z - z0 at the last position, by layer, `[B, D]`.
        prefixes: the rows' own keys and values of the earlier positions; None where all share the unperturbed ones.
        targets: target token ids, `[B]`.
        quantity: `probability` or `logit`.
    """
    sweep = _LastSweep(layers, recording, rows, real_weight, changes, prefixes)
    with torch.enable_grad(), ExitStack() as hooks:
        hooks.enter_context(attention_driven_by(sweep.attend, layers.layers))
        for index, (layer, module) in enumerate(zip(layers.layers, layers.modules, strict=True)):
            hooks.enter_context(input_hook(layer, partial(sweep.enter_layer, index)))
            hooks.enter_context(output_hook(module, partial(sweep.replace_output, index)))
            hooks.enter_context(output_hook(layer, partial(sweep.leave_layer, index)))
        logits = model(**batch.last_token_inputs()).logits[:, -1].float()
        logits = logits.reshape(-1, len(batch), logits.shape[-1])
        targets = targets.to(logits.device)
        values = logits.gather(-1, targets.expand(len(logits), -1)[..., None])[..., 0]
        if quantity == "probability":
            # The gradient of log p times p: the same number, without underflow in low precision.
            values = values - logits.logsumexp(-1)
        gradients = torch.autograd.grad(values.sum(), [*sweep.leaves.values(), *sweep.real_leaves.values()])
    values = values.detach()
    factors = values.exp() if quantity == "probability" else torch.ones_like(values)
    return LastSweepResult(
        logits=logits[0].detach(),
        values=factors if quantity == "probability" else values,
        gradients=sweep.weighted(gradients, factors),
    )


class _LastSweep:
    """Row 0 is the unperturbed stream of every prompt; the other rows follow in order, B prompts each."""

    def __init__(
        self,
        layers: Layers,
        recording: Recording,
        rows: Sequence[PathRow],
        real_weight: float,
        changes: Sequence[Tensor],
        prefixes: PrefixCache | None,
    ) -> None:
        self._layers = layers
        self._recording = recording
        self._rows = rows
        self._real_weight = real_weight
        self._prefixes = prefixes
        self._batch = recording.logits.shape[0]
        self._real_output = torch.empty(0)
        self._alphas = {index: [row.alpha for row in rows if row.layer == index] for index in range(len(layers))}
        self.leaves: dict[int, Tensor] = {}
        self.real_leaves: dict[int, Tensor] = {}
        for index, alphas in self._alphas.items():
            real = recording.last_outputs[index]
            if alphas:
                steps = torch.tensor(alphas, dtype=real.dtype, device=real.device)[:, None, None] - 1
                self.leaves[index] = (real + steps * changes[index]).requires_grad_()
            if real_weight:
                self.real_leaves[index] = torch.zeros_like(real).requires_grad_()

    def enter_layer(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a layer: append copies of row 0 where its new rows cannot be appended behind it."""
        hidden, arguments, keywords = split_call(arguments, keywords)
        if self._starts_inside(layer):
            copies = hidden[: self._batch].detach().repeat(len(self._alphas[layer]), 1, 1)
            hidden = torch.cat([hidden, copies])
        arguments, keywords = repeat_rows((arguments, keywords), self._batch, hidden.shape[0] // self._batch)
        return (hidden, *arguments), keywords

    def attend(self, layer: int, heads: Heads) -> Tensor:
        """One token per row over the prefix that the row shares with row 0, or its own."""
        keys, values = self._recording.prefix_keys[layer], self._recording.prefix_values[layer]
        visible = self._recording.visible[layer]
        if self._prefixes is None or layer not in self._prefixes.keys:
            return last_token_attention(heads, keys, values, visible)
        own_keys, own_values = self._prefixes.keys[layer], self._prefixes.values[layer]
        start, stop = self._batch, self._batch + len(own_keys)
        own_visible = None if visible is None else visible.repeat(len(own_keys) // len(visible), 1)
        outputs = [
            last_token_attention(heads.rows(0, start), keys, values, visible),
            last_token_attention(heads.rows(start, stop), own_keys, own_values, own_visible),
        ]
        if stop < len(heads.query):  # rows that start inside this layer
            outputs.append(last_token_attention(heads.rows(stop, len(heads.query)), keys, values, visible))
        return torch.cat(outputs)

    def replace_output(self, layer: int, output: Tensor) -> Tensor:
        """Behind the MLP: put in the leaf of row 0, and those of rows that start inside this layer."""
        parts = [output[: self._batch], output[self._batch :]]
        if layer in self.real_leaves:
            parts[0] = parts[0] + self.real_leaves[layer][:, None]
        if self._starts_inside(layer):
            leaves = self.leaves[layer].flatten(0, 1)[:, None]
            parts[1:] = [parts[1][: -len(leaves)], leaves]
        self._real_output = parts[0].detach()
        return torch.cat(parts)

    def leave_layer(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Behind a layer of the plain residual form: append its rows."""
        scale = self._layers.residual_scales[layer]
        if scale is None or not self._alphas[layer]:
            return None
        real = hidden[: self._batch].detach()
        started = real + scale * (self.leaves[layer][:, :, None] - self._real_output)
        return torch.cat([hidden, started.flatten(0, 1)])

    def weighted(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[int, Tensor]:
        """Sum `gradients` (of all leaves, then of row 0's) over rows: weighted by the rule and `factors`, `[R, B]`."""
        sums: dict[int, Tensor] = {}
        first = 1
        for layer, gradient in zip(self.leaves, gradients, strict=False):
            count = len(self._alphas[layer])
            weights = torch.tensor([row.weight for row in self._rows[first - 1 : first - 1 + count]])
            scaled = weights[:, None].to(factors) * factors[first : first + count]
            sums[layer] = torch.einsum("rb,rbd->bd", scaled.to(gradient.device), gradient.float())
            first += count
        for layer, gradient in zip(self.real_leaves, gradients[len(self.leaves) :], strict=True):
            share = self._real_weight * factors[0].to(gradient.device)[:, None] * gradient.float()
            sums[layer] = sums[layer] + share if layer in sums else share
        return sums

    def _starts_inside(self, layer: int) -> bool:
        return bool(self._alphas[layer]) and self._layers.residual_scales[layer] is None
