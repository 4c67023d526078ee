"""Sensitivity: what a small change of a row costs, as the diagonal of the output-side Fisher information.

Let z_l[t] be the MLP block's output at layer l and position t, and F = sum_t log p(y_t | tokens up to t) with y_t drawn
from the model's own distribution. The score of output node j, that is of row j of `down_proj.weight`, is

    score_l[j] = sum_t (dF/dz_l[t, j])^2

If row j changes by d and h is its input, z_j moves by d.h, and to second order the KL divergence between the model's
predictions before and after grows by 1/2 E[(dF/dz_j)^2] d^T E[h h^T] d (Kronecker-factored approximation,
arXiv 1503.05671). `--sensitivity empirical` takes the text's own next tokens for y (the empirical Fisher information).

In a mixture of experts, expert e, whose output at t the router weighs with w_e[t], has the sensitivity
sum_t w_e[t]^2 (dF/dz_l[t, j])^2 over the tokens that are routed to it: what a change of row j of its own `down_proj`
costs.

One forward and one backward pass per batch. Shapes: B prompts, T positions of the longest, L layers, D hidden size,
V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.attributor import Attribution, FreezesModel
from loki.kva.experts import Routing
from loki.kva.fast.memory import MemoryCost, free_memory, parts_within
from loki.kva.fast.record import depends_on_length
from loki.kva.hooks import input_device, output_hook, vocab_size
from loki.kva.prompts import PromptError, attributed_prompts
from loki.kva.settings import AttributionSettings, Sensitivity
from loki.models.architectures import mlp_outputs


class SensitivityAttributor(FreezesModel):
    """Sensitivities of every row, for any causal language model whose MLP outputs can be hooked.

    Args:
        model: a causal language model with an MLP in every layer.
        settings: `sensitivity` and `seed` are looked at.
        memory_budget: bytes that may be used beyond the model; None means what is free at each call.

    Raises:
        LokiError: if the model's MLP outputs cannot be found.
    """

    def __init__(self, model: PreTrainedModel, settings: AttributionSettings, memory_budget: int | None = None) -> None:
        super().__init__(model)
        self._empirical = settings.sensitivity is Sensitivity.EMPIRICAL
        self._seed = settings.seed
        self._budget = memory_budget
        self._modules = [output.attributed_module for output in mlp_outputs(model)]
        self._routing = Routing(model) if settings.per_expert else None

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Sensitivities of prompts, together or in parts that fit the memory; see `Attributor.attribute`.

        Which tokens are drawn for a prompt depends on the seed and on the prompt alone.

        Args:
            batch: token ids of each prompt.
            targets: not looked at: every position's prediction counts.

        Returns:
            One attribution per prompt, without target (-1), probability and completeness (NaN).

        Raises:
            PromptError: for a prompt that is too short, or does not fit the memory budget.
        """
        del targets
        prompts = attributed_prompts(batch, -1, vocab_size(self._model))
        if self._empirical:
            for index, prompt in enumerate(prompts):
                if len(prompt) < 2:
                    raise PromptError(index, "it has one token, and no next one to be predicted: leave it out")
        budget = free_memory(self._model) if self._budget is None else self._budget
        if self._routing is not None:
            self._routing.examine(prompts[0])
        found: list[Attribution] = []
        for part in parts_within(prompts, self._memory, budget, equal_lengths_only=depends_on_length(self._model)):
            found += self._attribute_part([prompts[index] for index in part])
        return found

    def _memory(self, prompts: Sequence[list[int]]) -> int:
        """Estimated bytes of a forward and a backward pass over all positions."""
        length = max(map(len, prompts))
        cost = MemoryCost.of(self._model, length, own_prefix=False)
        return len(prompts) * (cost.prompt + length * (cost.layers * cost.activations + cost.logits))

    def _attribute_part(self, prompts: Sequence[Sequence[int]]) -> list[Attribution]:
        """Sensitivities of prompts that are computed together."""
        length = max(map(len, prompts))
        # Padded on the right, where it reaches no earlier position of a causal model, whatever its layers are made of.
        padded = [[*prompt, *[0] * (length - len(prompt))] for prompt in prompts]
        input_ids = torch.tensor(padded, device=input_device(self._model))  # [B, T]
        leaves: dict[int, Tensor] = {}

        def add_leaf(layer: int, output: Tensor) -> Tensor:
            """Zeros added to z: the gradient with respect to them is that with respect to z."""
            leaves[layer] = torch.zeros_like(output).requires_grad_()
            return output + leaves[layer]

        with torch.enable_grad(), ExitStack() as hooks:
            for layer, module in enumerate(self._modules):
                hooks.enter_context(output_hook(module, partial(add_leaf, layer)))
            if self._routing is not None:
                hooks.enter_context(self._routing.watched())
            logits = self._model(input_ids=input_ids, use_cache=False).logits  # [B, T, V]
            total = logits.new_zeros((), dtype=torch.float32)
            for prompt, own in zip(prompts, logits, strict=True):
                total = total + self._log_probability(prompt, own[: len(prompt)].float())
            # Prompts do not reach each other, so the gradient of the sum holds each prompt's own.
            gradients = torch.autograd.grad(total, [leaves[layer] for layer in range(len(self._modules))])
        # Some families put out [B * T, D].
        squares = [gradient.reshape(*input_ids.shape, -1).float().square() for gradient in gradients]
        scores = torch.stack([square.sum(1).cpu() for square in squares], dim=1)  # [B, L, D]
        experts = self._routing.split(squares) if self._routing is not None else [None] * len(prompts)
        nan = float("nan")
        return [
            Attribution(scores=own, target=-1, probability=nan, completeness=nan, experts=of_experts)
            for own, of_experts in zip(scores, experts, strict=True)
        ]

    def _log_probability(self, prompt: Sequence[int], logits: Tensor) -> Tensor:
        """F of one prompt, a scalar, from its logits `[T, V]`."""
        tokens = torch.tensor(prompt[1:]) if self._empirical else self._drawn_tokens(prompt, logits.detach())
        logits = logits[: len(tokens)]  # nothing follows the last token of a text
        chosen = logits.gather(-1, tokens.to(logits.device)[:, None])[:, 0]
        return (chosen - logits.logsumexp(-1)).sum()

    def _drawn_tokens(self, prompt: Sequence[int], logits: Tensor) -> Tensor:
        """A token drawn from softmax(logits) at every position, `[T]`, by inverting the cumulative distribution."""
        shares = np.random.default_rng(seed_of_prompt(self._seed, prompt)).random((len(prompt), 1))
        if logits.device.type == "mps":
            logits = logits.cpu()  # that device has no float64
        cumulative = logits.softmax(-1, dtype=torch.float64).cumsum(-1)  # [T, V]
        wanted = torch.from_numpy(shares).to(logits.device) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def seed_of_prompt(seed: int, prompt: Sequence[int]) -> int:
    """The seed of what is drawn for a prompt: the same in every batch and every process."""
    return int.from_bytes(hashlib.sha256(repr((seed, [*map(int, prompt)])).encode()).digest()[:8], "little")
