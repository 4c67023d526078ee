"""The decoder layers as the engine sees them, and how a layer's output depends on its MLP output."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loki.kva.attributor import NotExactError
from loki.kva.fast.attention import attention_computed_by, causal_attention
from loki.kva.hooks import hidden_states, input_hook, output_hook
from loki.models.architectures import mlp_outputs

_PROBE_TOKENS = 4
_PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Layers:
    """The decoder layers of a model.

    Attributes:
        layers: the decoder layers.
        modules: in each, the module whose output z is attributed.
        residual_scales: c where the layer's output is `r + c * z` with r independent of z (the plain residual form);
            None where it is not (a normalisation follows the MLP).
    """

    layers: list[nn.Module]
    modules: list[nn.Module]
    residual_scales: list[float | None]

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class LayerCall:
    """The arguments that the model called a decoder layer with, so that it can be called again with more entries.

    Attributes:
        batch: number of prompts B of the call.
        arguments: positional arguments after the hidden states.
        keywords: keyword arguments.
    """

    batch: int
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The output of `layer` for `hidden`, `[R * B, T, D]`; entry r * B + b belongs to prompt b."""
        repeats = hidden.shape[0] // self.batch
        arguments, keywords = repeat_batch((self.arguments, self.keywords), self.batch, repeats)
        return hidden_states(layer(hidden, *arguments, **keywords))


def split_call(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states, the other positional and the other keyword arguments of a decoder layer's call."""
    if arguments:
        return arguments[0], arguments[1:], keywords
    keywords = dict(keywords)
    return keywords.pop("hidden_states"), (), keywords


def repeat_batch(value: Any, batch: int, repeats: int) -> Any:
    """`value` with every tensor in it that has `batch` entries repeated; tensors that broadcast stay as they are."""
    if repeats == 1 or batch == 1:
        return value
    if isinstance(value, Tensor):
        per_prompt = value.dim() > 1 and value.shape[0] == batch
        return value.repeat(repeats, *[1] * (value.dim() - 1)) if per_prompt else value
    if isinstance(value, tuple | list):
        return type(value)(repeat_batch(item, batch, repeats) for item in value)
    if isinstance(value, dict):
        return {name: repeat_batch(item, batch, repeats) for name, item in value.items()}
    return value


@torch.no_grad()
def find_layers(model: PreTrainedModel, input_ids: Tensor) -> Layers:
    """The decoder layers and their residual form, found by moving every MLP output once.

    Args:
        model: with its attention replaced.
        input_ids: any prompt, `[1, T]`; a few tokens of it are used.

    Raises:
        LokiError: if the model's MLP outputs cannot be found.
        NotExactError: if the batch cannot grow between layers, or an MLP's output is not laid out as
            `[B, T, D]`.
    """
    outputs = mlp_outputs(model)
    layers: list[nn.Module] = [output.layer for output in outputs]
    modules = [output.attributed_module for output in outputs]
    probes = [_ResidualProbe() for _ in layers]
    with ExitStack() as hooks:
        hooks.enter_context(attention_computed_by(lambda _, heads: causal_attention(heads), layers))
        for layer, module, probe in zip(layers, modules, probes, strict=True):
            hooks.enter_context(input_hook(layer, probe.see_input))
            hooks.enter_context(output_hook(module, probe.move))
            hooks.enter_context(output_hook(layer, probe.measure))
        hooks.enter_context(input_hook(layers[0], _double))
        try:
            model(input_ids=input_ids[:1, :_PROBE_TOKENS], use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotExactError("its batch cannot grow between layers") from error
    return Layers(layers, modules, [probe.scale for probe in probes])


def _double(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden, arguments, keywords = split_call(arguments, keywords)
    return (torch.cat([hidden, hidden]), *arguments), keywords


class _ResidualProbe:
    """Two equal entries pass a layer, the MLP output of the second is moved: how does the layer's output move?"""

    def __init__(self) -> None:
        self.scale: float | None = None
        self._size = 1.0
        self._step = torch.empty(0)

    def see_input(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden, _, _ = split_call(arguments, keywords)
        self._size = max(float(hidden.float().square().mean().sqrt()), 1e-6)

    def move(self, output: Tensor) -> Tensor:
        """Behind the MLP: move the second entry of `output`, `[2, T, D]`, by noise of the hidden states' size."""
        if output.dim() != 3 or output.shape[0] != 2:
            raise NotExactError("an MLP does not put out [batch, position, hidden]")
        noise = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(0))
        moved = output[1] + (noise * self._size).to(output)
        self._step = (moved - output[1]).cpu().double()
        return torch.stack([output[0], moved])

    def measure(self, output: Tensor) -> Tensor:
        """Behind the layer: has a multiple of that noise moved the second entry? Then make the entries equal again."""
        moved = output[1].cpu().double() - output[0].cpu().double()  # [T, D]
        step = self._step
        scale = float((moved * step).sum() / step.square().sum())
        error = float((moved - scale * step).norm() / (scale * step).norm().clamp_min(1e-30))
        if error <= _PROBE_TOLERANCE.get(output.dtype, _LOW_PRECISION_TOLERANCE):
            self.scale = 1.0 if abs(scale - 1.0) < error + 1e-6 else scale
        return torch.stack([output[0], output[0]])
