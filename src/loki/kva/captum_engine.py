"""The reference: Captum itself, layer by layer as published. Slow, for any model whose MLP outputs can be hooked.

Shapes: T positions, D hidden size, n points of the integration rule.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from torch import Tensor, nn
from transformers import PreTrainedModel

from loki.kva.attributor import Attribution, FreezesModel
from loki.kva.hooks import input_device, output_hook, vocab_size
from loki.kva.integration import completeness_gap
from loki.kva.prompts import attributed_prompts, checked_targets
from loki.kva.settings import AttributionSettings, Definition, Quantity
from loki.models.architectures import mlp_outputs

F = Callable[[Tensor], Tensor]
"""The attributed quantity of each of n prompts, `[n]`, from their token ids, `[n, T]`."""


@dataclass
class _Layers:
    """What was found, layer by layer: scores `[D]`, and of some layers their sum and F(z) - F(z0), scalars."""

    scores: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    differences: list[Tensor] = field(default_factory=list)


class CaptumAttributor(FreezesModel):
    """KVA by Captum, one layer at a time.

    The definition `captum` is `LayerIntegratedGradients` of the layer's MLP output; `paper` is `IntegratedGradients`
    of F as a function of that output's last position.

    Args:
        model: a causal language model with an MLP in every layer.
        settings: what is attributed; the field `engine` is not looked at.

    Raises:
        LokiError: if the model's MLP outputs cannot be found.
    """

    def __init__(self, model: PreTrainedModel, settings: AttributionSettings) -> None:
        super().__init__(model)
        self._settings = settings
        self._shape: tuple[int, ...] = ()  # of the token ids that the model runs on now, [n, T]
        self._modules = [output.attributed_module for output in mlp_outputs(model)]

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts one after the other; see `Attributor.attribute`."""
        tokens = vocab_size(self._model)
        prompts = attributed_prompts(batch, self._settings.position, tokens)
        return [
            self._attribute_one(torch.tensor([ids], device=input_device(self._model)), target)
            for ids, target in zip(prompts, checked_targets(targets, len(prompts), tokens), strict=True)
        ]

    def _attribute_one(self, input_ids: Tensor, target: int | None) -> Attribution:
        logits = self._last_logits(input_ids)
        token = int(logits.argmax()) if target is None else target

        def f(ids: Tensor) -> Tensor:
            last = self._last_logits(ids)  # [n, V]
            return (last.softmax(-1) if self._settings.quantity is Quantity.PROBABILITY else last)[:, token]

        all_positions = self._settings.definition is Definition.CAPTUM
        found = self._all_positions(input_ids, f) if all_positions else self._last_position(input_ids, f)
        scores = torch.stack(found.scores)  # [L, D]
        return Attribution(
            scores=scores.abs() if self._settings.absolute else scores,
            target=token,
            probability=float(logits.softmax(-1)[0, token]),
            completeness=completeness_gap(torch.stack(found.sums), torch.stack(found.differences)),
        )

    def _all_positions(self, input_ids: Tensor, f: F) -> _Layers:
        """The definition `captum`; only the last layer's scores are complete."""
        found = _Layers()
        zeros = torch.zeros_like(input_ids)
        for module in self._modules:
            with self._tapped(module) as tap:
                attributions = LayerIntegratedGradients(f, tap).attribute(
                    input_ids, baselines=zeros, n_steps=self._settings.steps, method=self._settings.ig_method
                )
            found.scores.append(attributions[0, -1].float().cpu())  # [1, T, D] -> [D]
        with self._tapped(self._modules[-1]) as tap:
            baseline = self._outputs_of(tap, zeros)
            found.sums.append(found.scores[-1].sum())
            found.differences.append(self._difference(input_ids, f, tap, lambda _: baseline))
        return found

    def _last_position(self, input_ids: Tensor, f: F) -> _Layers:
        """The definition `paper`."""
        found = _Layers()
        for attributed in self._modules:
            self._last_position_of(attributed, input_ids, f, found)
        return found

    def _last_position_of(self, attributed: nn.Module, input_ids: Tensor, f: F, found: _Layers) -> None:
        with self._tapped(attributed) as module:

            def f_of_output(z: Tensor) -> Tensor:
                """F `[n]` with the module's output at the last position set to `z`, `[n, D]`."""

                def edit(outputs: Tensor) -> Tensor:
                    return torch.cat([outputs[:, :-1], z.to(outputs.device)[:, None]], dim=1)

                with output_hook(module, edit):
                    return f(input_ids.expand(len(z), -1))

            activation = self._outputs_of(module, input_ids)[:, -1]  # [1, D]
            attributions = IntegratedGradients(f_of_output).attribute(
                activation,
                baselines=torch.zeros_like(activation),
                n_steps=self._settings.steps,
                method=self._settings.ig_method,
            )
            found.scores.append(attributions[0].float().cpu())
            found.sums.append(found.scores[-1].sum())
            found.differences.append(self._difference(input_ids, f, module, _last_position_zeroed))

    @contextmanager
    def _tapped(self, module: nn.Module) -> Iterator[nn.Module]:
        """A module that passes on the hidden states that `module` puts out, always as one tensor `[n, T, D]`.

        Some MLPs put out a tuple (GPT-OSS), or all positions of all prompts as `[n * T, D]` (OPT, Llama 4), and what
        Captum puts in their place must not be added to in place (Falcon).
        """
        tap = nn.Identity()

        def through_tap(outputs: Tensor) -> Tensor:
            laid_out = outputs.reshape(*self._shape, outputs.shape[-1])
            passed: Tensor = tap(laid_out)
            return passed.reshape(outputs.shape).clone()

        with output_hook(module, through_tap):
            yield tap

    def _difference(self, input_ids: Tensor, f: F, module: nn.Module, edit: Callable[[Tensor], Tensor]) -> Tensor:
        """F(z) - F(z0) on the CPU, where `edit` turns z, the output of `module`, into z0."""
        with torch.no_grad():
            original = f(input_ids)[0]
            with output_hook(module, edit):
                return (original - f(input_ids)[0]).float().cpu()

    def _outputs_of(self, module: nn.Module, input_ids: Tensor) -> Tensor:
        """The output of `module`, `[1, T, D]`."""
        kept: list[Tensor] = []
        self._shape = tuple(input_ids.shape)
        with torch.no_grad(), output_hook(module, kept.append):
            self._model(input_ids=input_ids, use_cache=False)
        return kept[0]

    def _last_logits(self, input_ids: Tensor) -> Tensor:
        """Logits at the last position, `[n, V]`, float32."""
        self._shape = tuple(input_ids.shape)
        logits: Tensor = self._model(input_ids=input_ids, use_cache=False).logits
        return logits[:, -1].float()


def _last_position_zeroed(outputs: Tensor) -> Tensor:
    zeroed = outputs.clone()
    zeroed[:, -1] = 0
    return zeroed
