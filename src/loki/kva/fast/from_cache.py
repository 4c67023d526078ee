"""The last token from the model's own cache: the definition `paper` for layers that do not mix by attention alone.

Under `paper` only the last position changes, so all that the earlier ones leave behind stays as it is: keys and values
of attention, and as well the states of convolutions, linear attention and state spaces. The model's own cache holds
them all after one run of the first T - 1 tokens. From there the last token runs once for every point of the path, and
the gradients are taken as in `last_token_pass.py`. That pass is cheaper, because points join its batch at their layer;
here every point runs through all layers, since a cache has one batch for all of them.

Exact wherever the cache is, which the original run shows: its logits must be those of the whole prompt.

Shapes: B prompts, T positions, P points computed together, D hidden size, V vocabulary. Entry 0 of P + 1 is the
original run.
"""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.errors import one_line, out_of_memory
from loki.kva.attributor import Attribution, FreezesModel, NotExactError
from loki.kva.fast.memory import MemoryCost, free_memory, parts_within
from loki.kva.fast.path import IntegrationPath, PathPoint, groups_within
from loki.kva.fast.record import last_logits
from loki.kva.fast.self_check import check_same_logits
from loki.kva.hooks import input_device, output_hook, vocab_size
from loki.kva.integration import completeness_gap, integration_rule
from loki.kva.prompts import PromptBatch, attributed_prompts, checked_targets
from loki.kva.settings import AttributionSettings, Quantity
from loki.models.architectures import mlp_outputs


class FromCacheAttributor(FreezesModel):
    """KVA by the definition `paper` for causal language models whose cache can be continued, one prompt at a time.

    Args:
        model: a causal language model with a cache.
        settings: what is attributed; the fields `engine` and `definition` are not looked at.
        memory_budget: bytes that may be used beyond the model; None means what is free at each call.
    """

    def __init__(self, model: PreTrainedModel, settings: AttributionSettings, memory_budget: int | None = None) -> None:
        super().__init__(model)
        self._settings = settings
        self._budget = memory_budget
        self._modules = [output.attributed_module for output in mlp_outputs(model)]

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts one after the other; see `Attributor.attribute`.

        Raises:
            LokiError: also where the memory budget is too small for a prompt.
            NotExactError: where the model's cache does not continue the prompt exactly.
        """
        prompts = attributed_prompts(batch, self._settings.position, vocab_size(self._model))
        wanted = checked_targets(targets, len(prompts), vocab_size(self._model))
        budget = free_memory(self._model) if self._budget is None else self._budget
        parts_within(prompts, self._least_memory, budget, equal_lengths_only=True)  # refuses a prompt that cannot fit
        return [self._attribute_one(prompt, target, budget) for prompt, target in zip(prompts, wanted, strict=True)]

    def _least_memory(self, prompts: Sequence[list[int]]) -> int:
        length = max(map(len, prompts))
        cost = MemoryCost.of(self._model, length, own_prefix=True)
        return len(prompts) * (cost.prompt + length * cost.activations + 2 * cost.point(PathPoint(0, 0.0, 0.0)))

    def _attribute_one(self, prompt: list[int], target: int | None, budget: int) -> Attribution:
        layers, device = len(self._modules), input_device(self._model)
        outputs: list[Tensor] = []  # z at the last position, [1, D] by layer
        with torch.no_grad(), ExitStack() as hooks:
            for module in self._modules:
                hooks.enter_context(output_hook(module, lambda output: outputs.append(_last_position(output))))
            logits = last_logits(self._model, PromptBatch.of([prompt], device))  # [1, V]
        if len(outputs) != layers:
            raise NotExactError("an MLP runs more than once")
        token = int(logits.argmax()) if target is None else target
        rule = integration_rule(self._settings.ig_method, self._settings.steps)
        path = IntegrationPath.of(rule, layers, last_position_only=True)
        # The gradient at alpha = 1 is that of the original run, for every layer.
        sums = [torch.zeros_like(z[0], dtype=torch.float32) for z in outputs]  # [D] by layer
        differences = torch.zeros(layers, dtype=torch.float64)
        cost = MemoryCost.of(self._model, len(prompt), own_prefix=True)
        left = budget - self._least_memory([prompt])
        original_weight = path.original_weight
        whole_run = cost.point(PathPoint(0, 0.0, 0.0)) + cost.prompt  # every point runs through all layers
        for points in groups_within(path.points, lambda _: whole_run, left):
            try:
                values, gradients = self._run(prompt, outputs, logits, points, token)
            except (
                RuntimeError,
                AttributeError,
                TypeError,
                ValueError,
                LookupError,
            ) as error:  # what some caches raise
                if out_of_memory(error):
                    raise
                raise NotExactError(f"its cache cannot be continued ({one_line(error)})") from error
            for number, point in enumerate(points, start=1):
                sums[point.layer] += point.weight * gradients[point.layer][number].float()
                if point.alpha == 0.0:
                    differences[point.layer] = float(values[0] - values[number])
            if original_weight:
                for layer, gradient in enumerate(gradients):
                    sums[layer] += original_weight * gradient[0].float()
                original_weight = 0.0
        scores = torch.stack([(own * z[0]).float().cpu() for own, z in zip(sums, outputs, strict=True)])  # [L, D]
        return Attribution(
            scores=scores.abs() if self._settings.absolute else scores,
            target=token,
            probability=float(logits.softmax(-1)[0, token]),
            completeness=completeness_gap(scores.sum(-1), differences),
            gradients=torch.stack([own.cpu() for own in sums]),
        )

    def _run(
        self, prompt: list[int], outputs: list[Tensor], logits: Tensor, points: Sequence[PathPoint], token: int
    ) -> tuple[Tensor, list[Tensor]]:
        """F in every run, `[P + 1]`, and dF/dz of every run by layer, `[P + 1, D]`."""
        input_ids = torch.tensor([prompt], device=input_device(self._model)).expand(len(points) + 1, -1)
        state: dict[str, Any] = {}
        if len(prompt) > 1:
            # Transformers renames the argument, and warns of its old name.
            argument = "cache" if "cache" in inspect.signature(self._model.forward).parameters else "past_key_values"
            with torch.no_grad():
                state[argument] = self._model(input_ids=input_ids[:, :-1], use_cache=True).past_key_values
        leaves: dict[int, Tensor] = {}

        def put_in(layer: int, output: Tensor) -> Tensor:
            z = output.detach().clone()  # [P + 1, 1, D], or without the middle
            alphas = torch.ones(len(z), dtype=z.dtype, device=z.device)
            mine = [number for number, point in enumerate(points, start=1) if point.layer == layer]
            if mine:
                alphas[mine] = torch.tensor([points[n - 1].alpha for n in mine], dtype=z.dtype, device=z.device)
                z[mine] = outputs[layer].to(z).reshape(z[:1].shape) * alphas[mine].reshape(-1, *[1] * (z.dim() - 1))
            leaves[layer] = torch.zeros_like(z).requires_grad_()
            # Runs of other layers' points go on with what came from below; those of this layer's start anew.
            own = torch.zeros(len(z), dtype=torch.bool, device=z.device)
            own[mine] = True
            return torch.where(own.reshape(-1, *[1] * (z.dim() - 1)), z, output) + leaves[layer]

        with (
            torch.enable_grad(),
            # Caches write the new state over the old one, which the backward pass still needs.
            torch.autograd.graph.allow_mutation_on_saved_tensors(),
            ExitStack() as hooks,
        ):
            for layer, module in enumerate(self._modules):
                hooks.enter_context(output_hook(module, partial(put_in, layer)))
            positions = torch.full_like(input_ids[:, -1:], len(prompt) - 1)
            found = self._model(input_ids=input_ids[:, -1:], position_ids=positions, use_cache=True, **state).logits
            found = found[:, -1].float()  # [P + 1, V]
            check_same_logits(found[:1].detach(), logits, self._model.dtype, "logits from the cache and recorded ones")
            chosen = found[:, token]
            if self._settings.quantity is Quantity.PROBABILITY:
                chosen = chosen - found.logsumexp(-1)  # dp/dz = p * d(log p)/dz, see `last_token_pass.py`
            gradients = torch.autograd.grad(chosen.sum(), [leaves[layer] for layer in range(len(self._modules))])
        chosen = chosen.detach()
        values = chosen.exp() if self._settings.quantity is Quantity.PROBABILITY else chosen
        factors = values if self._settings.quantity is Quantity.PROBABILITY else torch.ones_like(values)
        return values, [
            gradient.reshape(len(factors), -1).float() * factors[:, None].to(gradient.device) for gradient in gradients
        ]


def _last_position(output: Tensor) -> Tensor:
    """The last position of one prompt's output `[1, T, D]` or `[T, D]`, as `[1, D]`."""
    return output.reshape(-1, output.shape[-1])[-1:]
