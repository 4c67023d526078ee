"""The record sweep: the unperturbed run, and what the other sweeps need of it."""

import inspect
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.attributor import NotExactError
from loki.kva.fast.attention import Heads, attention_driven_by, causal_attention
from loki.kva.fast.layers import LayerCall, Layers, split_call
from loki.kva.fast.prompt_batch import PromptBatch
from loki.kva.hooks import input_hook, output_hook


@dataclass
class Recording:
    """The unperturbed run of a batch of prompts; lists hold one entry per layer.

    Attributes:
        logits: `[B, V]` at the last position, float32.
        prefix_keys: `[B, H_kv, T - 1, d]`, of the positions before the last.
        prefix_values: `[B, H_kv, T - 1, d_v]`.
        visible: `[B or 1, T - 1]`, True where the last position sees an earlier one; None means all.
        last_outputs: z at the last position, `[B, D]`.
        outputs: z at all positions, `[B, T, D]`; empty unless whole runs are kept.
        entrances: the hidden states from which rows with another z start, `[B, T, D]`: those behind the layer where
            the residual form is plain, else those before it; empty unless whole runs are kept.
        calls: how the model called the layer; empty unless whole runs are kept.
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    prefix_keys: list[Tensor] = field(default_factory=list)
    prefix_values: list[Tensor] = field(default_factory=list)
    visible: list[Tensor | None] = field(default_factory=list)
    last_outputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    entrances: list[Tensor] = field(default_factory=list)
    calls: list[LayerCall] = field(default_factory=list)


@torch.no_grad()
def record(model: PreTrainedModel, layers: Layers, batch: PromptBatch, *, whole: bool) -> Recording:
    """Run the prompts once and keep what the other sweeps need.

    Args:
        model: with the attention seam installed.
        layers: its decoder layers.
        batch: the prompts.
        whole: also keep MLP outputs and hidden states at all positions.

    Raises:
        NotExactError: if a layer does not pass through the attention interface exactly once.
    """
    recording = Recording()
    expected = 0

    def attend(layer: int, heads: Heads) -> Tensor:
        nonlocal expected
        if layer != expected:
            raise NotExactError(f"layer {expected} mixes tokens by something other than the attention interface")
        expected += 1
        recording.prefix_keys.append(heads.key[:, :, :-1])
        recording.prefix_values.append(heads.value[:, :, :-1])
        recording.visible.append(None if heads.mask is None else heads.mask[:, 0, -1, :-1])
        return causal_attention(heads)

    def see_output(output: Tensor) -> None:
        recording.last_outputs.append(output[:, -1])
        if whole:
            recording.outputs.append(output)

    with ExitStack() as hooks:
        hooks.enter_context(attention_driven_by(attend, layers.layers))
        for layer, module, scale in zip(layers.layers, layers.modules, layers.residual_scales, strict=True):
            hooks.enter_context(output_hook(module, see_output))
            if whole:

                def see_input(
                    arguments: tuple[Any, ...], keywords: dict[str, Any], plain: bool = scale is not None
                ) -> None:
                    hidden, arguments, keywords = split_call(arguments, keywords)
                    recording.calls.append(LayerCall(len(batch), arguments, keywords))
                    if not plain:
                        recording.entrances.append(hidden)

                hooks.enter_context(input_hook(layer, see_input))
                if scale is not None:
                    hooks.enter_context(output_hook(layer, recording.entrances.append))
        recording.logits = last_logits(model, batch)
    if expected != len(layers):
        raise NotExactError(f"layer {expected} mixes tokens by something other than the attention interface")
    return recording


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
        hooks.enter_context(attention_driven_by(lambda _, heads: causal_attention(heads), layers.layers))
        for module in layers.modules:
            hooks.enter_context(output_hook(module, outputs.append))
        last_logits(model, batch)
    return outputs
