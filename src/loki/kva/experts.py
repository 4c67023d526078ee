"""Scores per expert: what each expert of a mixture has brought to the score of its layer's block.

A block with experts puts out z = sum_e w_e z_e + s, where the router weighs the output z_e of each expert e that it
chooses for the token, and s is what every token goes through (a shared expert; nothing in many models). The block's
score is (z - z0) G, with G the integrated gradient with respect to z, so expert e has brought

    score_e = (w_e z_e - (w_e z_e)_0) G

where place j belongs to row j of its `down_proj`. With the part of s, these add up to the block's score. Under the
definition `paper` the baseline is zero; under `captum` it is what e brings on the sequence of token id 0, so that an
expert which is chosen there has a score as well. An expert that is chosen in neither has zeros.

Sensitivities are not split but each expert's own: see `loki.kva.sensitivity`.

Shapes: T positions, D hidden size, E experts, k experts chosen for a token.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.kva.attributor import Attribution, Attributor
from loki.kva.hooks import frozen, hidden_states, input_device, input_hook, output_hook, vocab_size
from loki.kva.prompts import attributed_prompts
from loki.kva.settings import AttributionSettings, Definition
from loki.models.architectures import MLPOutput, fused_axis, mlp_outputs, text_config

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 5e-2


def expert_scores(
    model: PreTrainedModel, prompt: Sequence[int], attribution: Attribution, definition: Definition | str
) -> dict[int, Tensor]:
    """The part of each expert in the scores of one prompt.

    Args:
        model: the model that was attributed.
        prompt: token ids up to the attributed position, which is the last.
        attribution: of the prompt, signed, by an engine that gives `gradients`.
        definition: that it was made with, `captum` or `paper`.

    Returns:
        By layer whose block ends in experts, `[E, D]` float32 on the CPU. What is left of the layer's scores,
        `attribution.scores[layer] - found[layer].sum(0)`, is the part of what every token goes through.

    Raises:
        LokiError: if no layer has experts in a form that is known, or the attribution has no gradients (Captum's,
            sensitivities) or is absolute; if a block does more with its experts' outputs than add them up, or does not
            compute what it computed when it was attributed.
    """
    if attribution.gradients is None:
        raise _refusal("Captum's scores and sensitivities have no integrated gradients")
    blocks = _blocks(model)
    own = _run(model, blocks, prompt)
    zero = _run(model, blocks, [0] * len(prompt)) if Definition(definition) is Definition.CAPTUM else None
    found: dict[int, Tensor] = {}
    for layer, (output, parts) in own.items():
        if zero is not None:
            output, parts = output - zero[layer][0], parts - zero[layer][1]
        gradient, scores = attribution.gradients[layer], attribution.scores[layer]
        if not _close(output * gradient, scores, model.dtype):
            raise _refusal(f"layer {layer} puts out something else than when it was attributed, or scores are absolute")
        found[layer] = parts * gradient
    return found


class ExpertsAttributor:
    """An engine whose attributions hold the scores of each expert as well.

    Args:
        model: a mixture of experts.
        settings: `definition` and `position` are looked at.
        whole: the engine, which gives gradients.

    Raises:
        LokiError: if no layer has experts in a form that is known; in `attribute`, see `expert_scores`.
    """

    def __init__(self, model: PreTrainedModel, settings: AttributionSettings, whole: Attributor) -> None:
        _blocks(model)
        self._model, self._settings, self._whole = model, settings, whole

    def __enter__(self) -> Self:
        self._whole.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._whole.__exit__(kind, error, trace)

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts; see `Attributor.attribute`."""
        attributions = self._whole.attribute(batch, targets)
        prompts = attributed_prompts(batch, self._settings.position, vocab_size(self._model))
        return [
            replace(found, experts=expert_scores(self._model, prompt, found, self._settings.definition))
            for prompt, found in zip(prompts, attributions, strict=True)
        ]


class Routing:
    """Which tokens a forward pass sends to which experts.

    Args:
        model: a mixture of experts.

    Raises:
        LokiError: if no layer has experts in a form that is known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._blocks = _blocks(model)
        self._inputs: dict[int, list[Tensor]] = {}
        self._examined = False

    def examine(self, prompt: Sequence[int]) -> None:
        """Check once, on a prompt, that the blocks add up their experts' weighted outputs.

        Raises:
            LokiError: if one does more.
        """
        if not self._examined:
            _run(self._model, self._blocks, prompt)
        self._examined = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep what goes to the experts while the block runs."""

        def keep(layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._inputs[layer] = [each.detach() for each in (*arguments, *keywords.values())]

        with ExitStack() as hooks:
            for layer, output in self._blocks.items():
                assert output.experts is not None
                hooks.enter_context(input_hook(output.experts, partial(keep, layer)))
            yield

    def split(self, squares: Sequence[Tensor]) -> list[dict[int, Tensor]]:
        """The sensitivities of the experts, for each prompt of the batch that was watched.

        Args:
            squares: by layer, `[B, T, D]`: squared gradients at the block's output.

        Returns:
            For each prompt, by layer with experts, `[E, D]` on the CPU.
        """
        found = {layer: self._split(output, layer, squares[layer]).cpu() for layer, output in self._blocks.items()}
        return [{layer: of_batch[place] for layer, of_batch in found.items()} for place in range(len(squares[0]))]

    def _split(self, output: MLPOutput, layer: int, squares: Tensor) -> Tensor:
        assert output.experts is not None
        prompts, length, hidden = squares.shape
        count = len(output.experts.get_parameter("down_proj"))
        prompt_of = torch.arange(prompts, device=squares.device).repeat_interleave(length)  # [B * T]
        parts = squares.new_zeros(prompts * count, hidden)
        flat, inputs = squares.reshape(-1, hidden), self._inputs.pop(layer)
        if len(inputs) == 1:  # Llama 4, see `_Call.parts`: a token has zeros for the experts that it is not sent to
            sent = inputs[0].reshape(count, len(flat), -1).any(dim=-1).to(squares)  # [E, B * T]
            for expert in range(count):
                parts.index_add_(0, prompt_of * count + expert, sent[expert, :, None] * flat)
        else:
            _, chosen, weights = (each.reshape(len(flat), -1).to(squares.device) for each in inputs)
            for place in range(chosen.shape[-1]):
                parts.index_add_(0, prompt_of * count + chosen[:, place], weights[:, place, None].float() ** 2 * flat)
        return parts.reshape(prompts, count, hidden)


def _blocks(model: PreTrainedModel) -> dict[int, MLPOutput]:
    """The layers whose attributed output is that of a block with experts, all of them held in one parameter."""
    hidden = text_config(model.config).hidden_size
    blocks = {
        layer: output
        for layer, output in enumerate(mlp_outputs(model))
        if output.projection is None and output.experts is not None and fused_axis(output.experts, hidden) is not None
    }
    if not blocks:
        raise _refusal(f"this {model.config.model_type} model has no layer that ends in experts of a known form")
    return blocks


def _run(
    model: PreTrainedModel, blocks: dict[int, MLPOutput], prompt: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """By layer, the block's output at the last position `[D]`, and each expert's part of it `[E, D]`."""
    calls = {layer: _Call(output, layer) for layer, output in blocks.items()}
    with torch.no_grad(), frozen(model):
        with ExitStack() as hooks:
            for call in calls.values():
                hooks.enter_context(call.watched())
            model(input_ids=torch.tensor([list(prompt)], device=input_device(model)), use_cache=False)
        return {layer: call.parts() for layer, call in calls.items()}


class _Call:
    """How the model called one block and its experts."""

    def __init__(self, output: MLPOutput, layer: int) -> None:
        assert output.experts is not None
        self._block, self._experts, self._layer = output.block, output.experts, layer
        self._block_call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._experts_inputs: list[Tensor] = []
        self._output = torch.empty(0)

    def watched(self) -> ExitStack:
        """Hooks that keep what goes into block and experts, and what comes out of the block."""

        def enter(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._block_call = (arguments, keywords)

        def choose(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._experts_inputs = [*arguments, *keywords.values()]

        def leave(output: Tensor) -> None:
            self._output = output.clone()

        stack = ExitStack()
        stack.enter_context(input_hook(self._block, enter))
        stack.enter_context(input_hook(self._experts, choose))
        stack.enter_context(output_hook(self._block, leave))
        return stack

    def parts(self) -> tuple[Tensor, Tensor]:
        """The block's output `[D]` and the experts' parts `[E, D]` at the last position, float32 on the CPU."""
        count = len(self._experts.get_parameter("down_proj"))
        if len(self._experts_inputs) == 3:  # tokens [T, D], chosen experts and their weights [T, k]
            tokens, chosen, weights = (each.reshape(-1, each.shape[-1])[-1:] for each in self._experts_inputs)
            if chosen.shape != weights.shape:
                raise self._unknown()
            parts = tokens.new_zeros(count, tokens.shape[-1], dtype=torch.float32)
            for place in range(chosen.shape[-1]):
                one = slice(place, place + 1)
                parts[chosen[0, place]] += hidden_states(self._experts(tokens, chosen[:, one], weights[:, one]))[
                    0
                ].float()
            whole = hidden_states(self._experts(tokens, chosen, weights))[0].float()
            # Sensitivities take an expert's part to grow with its weight.
            doubled = hidden_states(self._experts(tokens, chosen, 2 * weights))[0].float()
            if not _close(doubled, 2 * whole, tokens.dtype):
                raise self._unknown()
        elif len(self._experts_inputs) == 1:  # Llama 4: all tokens, weighted, for each expert: [E * T, D]
            tokens = self._experts_inputs[0]
            tokens = tokens.reshape(count, -1, tokens.shape[-1])[:, -1]
            parts = hidden_states(self._experts(tokens)).float()
            whole = parts.sum(0)
        else:
            raise self._unknown()
        output = self._output.reshape(-1, self._output.shape[-1])[-1].float()
        moved, step = self._moved(count if len(self._experts_inputs) == 1 else 1)
        dtype = self._output.dtype
        if not _close(parts.sum(0), whole, dtype) or not _close(moved - output, step, dtype):
            raise _refusal(f"layer {self._layer} does more with its experts than add them up")
        return output.cpu(), parts.cpu()

    def _moved(self, copies: int) -> tuple[Tensor, Tensor]:
        """The block's output `[D]` at the last position with noise added to its experts' output, and that noise."""
        step = torch.empty(0)

        def move(output: Tensor) -> Tensor:
            nonlocal step
            noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
            moved = output + noise * self._output.float().std().to(output)
            by_token = (moved.float() - output.float()).reshape(copies, -1, output.shape[-1])
            step = by_token.sum(0)[-1]
            return moved

        arguments, keywords = self._block_call
        with output_hook(self._experts, move):
            output = hidden_states(self._block(*arguments, **keywords))
        return output.reshape(-1, output.shape[-1])[-1].float(), step

    def _unknown(self) -> LokiError:
        return _refusal(f"the experts of layer {self._layer} are called in a way that is not known")


def _refusal(problem: str) -> LokiError:
    return LokiError(f"there are no scores per expert here ({problem}): leave out --per-expert")


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    difference = float((found - wanted).norm())
    return difference <= _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE) * float(wanted.norm()) + 1e-30
