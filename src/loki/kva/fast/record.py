"""The record pass: the original run of the prompts, and what the other passes need of it.

Shapes: B prompts, T positions, D hidden size, K key-value heads, d and d_v head widths, V vocabulary.
"""

import inspect
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.attributor import NotExactError
from loki.kva.fast.attention import Heads, attention_computed_by, causal_attention
from loki.kva.fast.layers import LayerCall, Layers, split_call
from loki.kva.hooks import input_hook, output_hook
from loki.kva.prompts import PromptBatch
from loki.models.architectures import max_positions, text_config

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass
class Recording:
    """The original run of a batch of prompts; lists hold one entry per layer.

    Attributes:
        logits: `[B, V]` at the last position, float32.
        prefix_keys: `[B, K, T - 1, d]`, of the positions before the last.
        prefix_values: `[B, K, T - 1, d_v]`.
        visible: `[B or 1, T - 1]`, True where the last position sees an earlier one; None means all.
        last_outputs: z at the last position, `[B, D]`.
        outputs: z at all positions, `[B, T, D]`; empty unless all positions are kept.
        branch_states: the hidden states from which runs with another z branch off, `[B, T, D]`: those behind the layer
            where the residual form is plain, else those before it; empty unless all positions are kept.
        calls: how the model called the layer; empty unless all positions are kept.
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    prefix_keys: list[Tensor] = field(default_factory=list)
    prefix_values: list[Tensor] = field(default_factory=list)
    visible: list[Tensor | None] = field(default_factory=list)
    last_outputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    branch_states: list[Tensor] = field(default_factory=list)
    calls: list[LayerCall] = field(default_factory=list)


@torch.no_grad()
def record(model: PreTrainedModel, layers: Layers, batch: PromptBatch, *, keep_all_positions: bool) -> Recording:
    """Run the prompts once and keep what the other passes need.

    Args:
        model: with its attention replaced.
        layers: its decoder layers.
        batch: the prompts.
        keep_all_positions: also keep MLP outputs and hidden states of every position (definition `captum`).

    Raises:
        NotExactError: if a layer does not pass through the attention interface exactly once.
    """
    recording = Recording()
    next_layer = 0

    def attend(layer: int, heads: Heads) -> Tensor:
        nonlocal next_layer
        if layer != next_layer:
            raise _mixes_otherwise(next_layer)
        next_layer += 1
        recording.prefix_keys.append(heads.key[:, :, :-1])  # [B, K, T, d] -> [B, K, T - 1, d]
        recording.prefix_values.append(heads.value[:, :, :-1])
        # The last query's line of the mask: [B or 1, 1, T, T] -> [B or 1, T - 1]
        recording.visible.append(None if heads.mask is None else heads.mask[:, 0, -1, :-1])
        return causal_attention(heads)

    def keep_output(output: Tensor) -> None:
        recording.last_outputs.append(output[:, -1])  # [B, T, D] -> [B, D]
        if keep_all_positions:
            recording.outputs.append(output)

    def keep_call(arguments: tuple[Any, ...], keywords: dict[str, Any], plain: bool) -> None:
        hidden, arguments, keywords = split_call(arguments, keywords)
        recording.calls.append(LayerCall(len(batch), arguments, keywords))
        if not plain:
            recording.branch_states.append(hidden)

    with ExitStack() as hooks:
        hooks.enter_context(attention_computed_by(attend, layers.layers))
        for layer, module, scale in zip(layers.layers, layers.modules, layers.residual_scales, strict=True):
            hooks.enter_context(output_hook(module, keep_output))
            if keep_all_positions:
                hooks.enter_context(input_hook(layer, partial(keep_call, plain=scale is not None)))
                if scale is not None:
                    hooks.enter_context(output_hook(layer, recording.branch_states.append))
        recording.logits = last_logits(model, batch)
    if next_layer != len(layers):
        raise _mixes_otherwise(next_layer)
    return recording


def _mixes_otherwise(layer: int) -> NotExactError:
    return NotExactError(f"layer {layer} mixes tokens by something other than the attention interface")


def last_logits(model: PreTrainedModel, batch: PromptBatch) -> Tensor:
    """The model's logits at the last position, `[B, V]`, float32."""
    inputs = batch.full_inputs()
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = 1
    logits: Tensor = model(**inputs).logits
    return logits[:, -1].float()


@torch.no_grad()
def record_outputs(model: PreTrainedModel, layers: Layers, batch: PromptBatch) -> list[Tensor]:
    """The MLP outputs z of every layer at all positions, `[B, T, D]` each."""
    outputs: list[Tensor] = []
    with ExitStack() as hooks:
        hooks.enter_context(attention_computed_by(lambda _, heads: causal_attention(heads), layers.layers))
        for module in layers.modules:
            hooks.enter_context(output_hook(module, outputs.append))
        last_logits(model, batch)
    return outputs


def depends_on_length(model: PreTrainedModel) -> bool:
    """Whether a token's hidden states depend on the tokens after it, through rotary embeddings that know the length."""
    parameters = getattr(text_config(model.config), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return any(kind.get("rope_type") in _LENGTH_DEPENDENT_ROPE for kind in [parameters, *nested])


class ZeroTokenBaseline:
    """The activation baseline z0 of the definition `captum`: every layer's MLP outputs on a sequence of token id 0.

    Computed once per power of two of the length and kept: by causality, the outputs on a long sequence begin with
    those on a shorter one. To the last bit they may differ, so which sequence serves a batch depends on the batch
    alone, not on what was computed before.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._exact_length = depends_on_length(model)
        self._outputs: dict[int, list[Tensor]] = {}

    def outputs(self, layers: Layers, batch: PromptBatch) -> list[Tensor]:
        """z0 at every token's position in its own prompt, `[B, T, D]` or `[1, T, D]` by layer.

        Args:
            layers: the model's layers; its attention is replaced.
            batch: the prompts.
        """
        length = self._length_for(batch.length)
        if length not in self._outputs:
            if self._exact_length:
                self._outputs.clear()
            zeros = PromptBatch.of([[0] * length], batch.input_ids.device)
            self._outputs[length] = record_outputs(self._model, layers, zeros)
        kept = self._outputs[length]  # [1, length, D] by layer
        if batch.attention_mask is None:
            return [outputs[:, : batch.length] for outputs in kept]
        return [outputs[0][batch.position_ids.to(outputs.device)] for outputs in kept]  # indexed by [B, T]

    def _length_for(self, length: int) -> int:
        if self._exact_length:
            return length
        longest = max_positions(self._model.config) or length
        return max(length, min(1 << (length - 1).bit_length(), longest))
