"""The reference: Captum itself, layer by layer as published. Slow, for any model whose MLP outputs can be hooked."""

from collections.abc import Callable, Sequence

import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.attributor import Attribution, ModelUser, input_device
from loki.kva.completeness import relative_gap
from loki.kva.hooks import output_hook
from loki.kva.inputs import attributed_prompts, checked_targets
from loki.kva.settings import AttributionSettings
from loki.models.architectures import mlp_outputs


class CaptumAttributor(ModelUser):
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
        self._modules = [output.attributed_module for output in mlp_outputs(model)]

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts one after the other; see `Attributor.attribute`."""
        vocab_size = self._model.get_input_embeddings().weight.shape[0]
        prompts = attributed_prompts(batch, self._settings.position, vocab_size)
        return [
            self._attribute_one(torch.tensor([ids], device=input_device(self._model)), target)
            for ids, target in zip(prompts, checked_targets(targets, len(prompts), vocab_size), strict=True)
        ]

    def _attribute_one(self, input_ids: Tensor, target: int | None) -> Attribution:
        logits = self._last_logits(input_ids)
        token = int(logits.argmax()) if target is None else target

        def quantity(ids: Tensor) -> Tensor:
            """F of every row."""
            return self._quantity(self._last_logits(ids), token)

        if self._settings.definition == "captum":
            rows, sums, differences = self._captum_rows(input_ids, quantity)
        else:
            rows, sums, differences = self._paper_rows(input_ids, quantity)
        scores = torch.stack(rows)
        return Attribution(
            scores=scores.abs() if self._settings.absolute else scores,
            target=token,
            probability=float(logits.softmax(-1)[0, token]),
            completeness=relative_gap(torch.stack(sums), torch.stack(differences)),
        )

    def _captum_rows(
        self, input_ids: Tensor, quantity: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        zeros = torch.zeros_like(input_ids)
        rows = []
        for module in self._modules:
            attribution = LayerIntegratedGradients(quantity, module).attribute(
                input_ids, baselines=zeros, n_steps=self._settings.steps, method=self._settings.ig_method
            )
            rows.append(attribution[0, -1].float().cpu())
        last = self._modules[-1]
        baseline = self._outputs_of(last, zeros)
        difference = self._change(input_ids, quantity, last, lambda _: baseline)
        return rows, [rows[-1].sum()], [difference]

    def _paper_rows(
        self, input_ids: Tensor, quantity: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        rows, differences = [], []
        for module in self._modules:

            def quantity_at(last_outputs: Tensor, module: torch.nn.Module = module) -> Tensor:
                """F of every row, with the module's output at the last position set to `last_outputs`."""

                def edit(outputs: Tensor) -> Tensor:
                    return torch.cat([outputs[:, :-1], last_outputs.to(outputs.device)[:, None]], dim=1)

                with output_hook(module, edit):
                    return quantity(input_ids.expand(len(last_outputs), -1))

            activation = self._outputs_of(module, input_ids)[:, -1]
            attribution = IntegratedGradients(quantity_at).attribute(
                activation,
                baselines=torch.zeros_like(activation),
                n_steps=self._settings.steps,
                method=self._settings.ig_method,
            )
            rows.append(attribution[0].float().cpu())
            differences.append(self._change(input_ids, quantity, module, _last_position_zeroed))
        return rows, [row.sum() for row in rows], differences

    def _change(
        self,
        input_ids: Tensor,
        quantity: Callable[[Tensor], Tensor],
        module: torch.nn.Module,
        edit: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """F(z) - F(z0) on the CPU, where `edit` turns z, the output of `module`, into z0."""
        with torch.no_grad():
            real = quantity(input_ids)[0]
            with output_hook(module, edit):
                return (real - quantity(input_ids)[0]).float().cpu()

    def _outputs_of(self, module: torch.nn.Module, input_ids: Tensor) -> Tensor:
        kept: list[Tensor] = []
        with torch.no_grad(), output_hook(module, kept.append):
            self._model(input_ids=input_ids, use_cache=False)
        return kept[0]

    def _last_logits(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=input_ids, use_cache=False).logits
        return logits[:, -1].float()

    def _quantity(self, logits: Tensor, target: int) -> Tensor:
        values = logits.softmax(-1) if self._settings.quantity == "probability" else logits
        return values[:, target]


def _last_position_zeroed(outputs: Tensor) -> Tensor:
    zeroed = outputs.clone()
    zeroed[:, -1] = 0
    return zeroed
