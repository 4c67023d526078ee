"""Attribution per expert: what each expert of a mixture has brought to the score of its layer's block.

A block with experts puts out z = sum_e w_e z_e + s, where the router weighs the output z_e of each expert e that it
chooses for the token, and s is what every token goes through (a shared expert; nothing in many models). The block's
score is (z - z0) G, with G the integrated gradient with respect to z, so expert e has brought

    score_e = (w_e z_e - (w_e z_e)_0) G

where place j belongs to row j of its `down_proj`. With the part of s, these add up to the block's score. Under the
definition `paper` the baseline is zero; under `captum` it is what e brings on the sequence of token id 0, so that an
expert which is chosen there has a score as well. An expert that is chosen in neither has zeros.

Shapes: T positions, D hidden size, E experts, k experts chosen for a token.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.kva.attributor import Attribution, NotExactError
from loki.kva.hooks import frozen, hidden_states, input_device, input_hook, output_hook
from loki.kva.settings import Definition
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
            sensitivities) or is absolute.
        NotExactError: if a block does more with its experts' outputs than add them up, or does not compute what it
            computed when it was attributed.
    """
    if attribution.gradients is None:
        raise LokiError("scores per expert need the engine fast or auto, and the definition captum or paper")
    blocks = _blocks(model)
    own = _run(model, blocks, prompt)
    zero = _run(model, blocks, [0] * len(prompt)) if Definition(definition) is Definition.CAPTUM else None
    found: dict[int, Tensor] = {}
    for layer, (output, parts) in own.items():
        if zero is not None:
            output, parts = output - zero[layer][0], parts - zero[layer][1]
        gradient, scores = attribution.gradients[layer], attribution.scores[layer]
        if not _close(output * gradient, scores, model.dtype):
            raise NotExactError(
                f"layer {layer} puts out something else than when it was attributed, or scores are absolute"
            )
        found[layer] = parts * gradient
    return found


def _blocks(model: PreTrainedModel) -> dict[int, MLPOutput]:
    """The layers whose attributed output is that of a block with experts, all of them held in one parameter."""
    hidden = text_config(model.config).hidden_size
    blocks = {
        layer: output
        for layer, output in enumerate(mlp_outputs(model))
        if output.projection is None and output.experts is not None and fused_axis(output.experts, hidden) is not None
    }
    if not blocks:
        raise LokiError(
            f"this {model.config.model_type} model has no layer that ends in experts of a known form, so there are no "
            "scores per expert: leave them out"
        )
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
            raise NotExactError(f"layer {self._layer} does more with its experts than add them up")
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

    def _unknown(self) -> NotExactError:
        return NotExactError(f"the experts of layer {self._layer} are called in a way that is not known")


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    difference = float((found - wanted).norm())
    return difference <= _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE) * float(wanted.norm()) + 1e-30
