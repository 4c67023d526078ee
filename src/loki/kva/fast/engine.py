"""The fast engine: the numbers of Captum, or of the paper's equations, at the price of a few forward passes.

Causality makes it possible. Only the last position reaches F, the earlier ones act through their keys and values; so
gradients need a graph of single tokens. Everything at or below an interpolated layer is the original run. So:

1. record the original run (`recording`);
2. carry the earlier positions of every interpolated row through the layers above its own, without gradients, and keep
   their keys and values (`prefix_sweep`, definition `captum` only: under `paper` they are the original ones);
3. carry the last position of all rows through the layers in one growing batch, and differentiate (`last_sweep`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva.attributor import Attribution, ModelUser, input_device
from loki.kva.completeness import relative_gap
from loki.kva.fast.attention import seam_installed
from loki.kva.fast.baseline import ZeroTokenBaseline, depends_on_length
from loki.kva.fast.last_token_pass import LastSweepResult, sweep_last_token
from loki.kva.fast.layers import Layers, find_layers
from loki.kva.fast.memory import MemoryCost, free_memory, shown_bytes
from loki.kva.fast.path import IntegrationPath, PathRow, groups_within
from loki.kva.fast.prefix_pass import sweep_prefix
from loki.kva.fast.prompt_batch import PromptBatch
from loki.kva.fast.record import Recording, last_logits, record
from loki.kva.fast.self_check import check_attention_alone_mixes, check_same_logits
from loki.kva.inputs import PromptError, attributed_prompts, checked_targets
from loki.kva.integration import integration_rule
from loki.kva.settings import AttributionSettings
from loki.models.architectures import max_positions

# Tokens that go through a layer together in the prefix sweep: on a CPU they should stay in its caches.
_TOKENS_PER_PASS = {"cpu": 1024}
_TOKENS_PER_PASS_ELSEWHERE = 16384
_EXAMINED_TOKENS = 64


@dataclass(frozen=True)
class _Integral:
    """Gradients summed over the path so far, by layer, `[B, D]`, and F(z) - F(z0) of some layers, `[B]`."""

    gradients: list[Tensor]
    differences: dict[int, Tensor]

    def add(self, result: LastSweepResult, rows: Sequence[PathRow]) -> None:
        for layer, gradient in result.gradients.items():
            self.gradients[layer] += gradient
        for row, values in zip(rows, result.values[1:], strict=True):
            if row.alpha == 0.0:
                self.differences[row.layer] = result.values[0] - values


class FastAttributor(ModelUser):
    """KVA for causal language models whose layers mix tokens by attention alone.

    Args:
        model: a causal language model that takes its attention from Transformers' `AttentionInterface`.
        settings: what is attributed; the field `engine` is not looked at.
        memory_budget: bytes that may be used beyond the model; None means what is free at each call.
    """

    def __init__(self, model: PreTrainedModel, settings: AttributionSettings, memory_budget: int | None = None) -> None:
        super().__init__(model)
        self._settings = settings
        self._budget = memory_budget
        self._own_prefix = settings.definition == "captum"
        self._layers: Layers | None = None
        self._baseline = ZeroTokenBaseline(model)

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts together, or in parts that fit the memory; see `Attributor.attribute`.

        Raises:
            LokiError: also where the memory budget is too small for a prompt.
            NotExactError: where the engine cannot compute this model exactly.
        """
        vocab_size = self._model.get_input_embeddings().weight.shape[0]
        prompts = attributed_prompts(batch, self._settings.position, vocab_size)
        wanted = checked_targets(targets, len(prompts), vocab_size)
        if not prompts:
            return []
        layers = self.examine()
        attributions: dict[int, Attribution] = {}
        budget = free_memory(self._model) if self._budget is None else self._budget
        with seam_installed(self._model):
            for part in self._parts(prompts, budget):
                found = self._attribute_part(
                    layers, [prompts[index] for index in part], [wanted[index] for index in part], budget
                )
                attributions |= dict(zip(part, found, strict=True))
        return [attributions[index] for index in range(len(prompts))]

    def examine(self) -> Layers:
        """Find the layers, and check once that the engine can compute this model.

        On a prompt of its own, so that what is found, to the last bit, does not depend on which prompt comes first.

        Raises:
            NotExactError: if a layer mixes tokens outside its attention, or the seam does not compute what the model's
                own attention does.
        """
        if self._layers is None:
            vocab_size = self._model.get_input_embeddings().weight.shape[0]
            longest = max_positions(self._model.config) or _EXAMINED_TOKENS
            prompt = [(1 + 7919 * place) % vocab_size for place in range(max(2, min(_EXAMINED_TOKENS, longest)))]
            batch = PromptBatch.of([prompt], input_device(self._model))
            with torch.no_grad():
                own = last_logits(self._model, batch)
            with seam_installed(self._model):
                layers = find_layers(self._model, batch.input_ids)
                recorded = record(self._model, layers, batch, whole=False).logits
                check_same_logits(recorded, own, self._model.dtype, "recorded logits and the model's own")
                check_attention_alone_mixes(self._model, layers, prompt)
            self._layers = layers
        return self._layers

    def _parts(self, prompts: list[list[int]], budget: int) -> list[list[int]]:
        """Indices of prompts that are computed together."""
        parts: list[list[int]] = []
        apart = depends_on_length(self._model)
        for index, prompt in enumerate(prompts):
            together = [*parts[-1], index] if parts else []
            same = not apart or len({len(prompts[member]) for member in together}) == 1
            if together and same and self._least(together, prompts) <= budget:
                parts[-1] = together
                continue
            if (least := self._least([index], prompts)) > budget:
                raise PromptError(
                    index,
                    f"its {len(prompt)} tokens need {shown_bytes(least)} beside the model, but {shown_bytes(budget)} "
                    "may be used: raise the memory budget or shorten the prompt",
                )
            parts.append([index])
        return parts

    def _least(self, members: list[int], prompts: list[list[int]]) -> int:
        """The least memory in which the prompts `members` can be computed together: one row at a time."""
        length = max(len(prompts[member]) for member in members)
        cost = MemoryCost.of(self._model, length, own_prefix=self._own_prefix)
        return len(members) * (cost.prompt + length * cost.activations + 2 * cost.row(PathRow(0, 0.0, 0.0)))

    def _attribute_part(
        self, layers: Layers, prompts: list[list[int]], targets: list[int | None], budget: int
    ) -> list[Attribution]:
        batch = PromptBatch.of(prompts, input_device(self._model))
        recording = record(self._model, layers, batch, whole=self._own_prefix)
        chosen = recording.logits.argmax(-1).tolist()
        tokens = [own if target is None else target for own, target in zip(chosen, targets, strict=True)]
        changes = self._changes(layers, batch, recording.outputs or recording.last_outputs)
        rule = integration_rule(self._settings.ig_method, self._settings.steps)
        path = IntegrationPath.of(rule, len(layers), closed=not self._own_prefix)

        integral = self._integrate(layers, batch, recording, changes, path, tokens, budget)
        last_changes = [change[:, -1] if self._own_prefix else change for change in changes]
        scores = torch.stack(
            [(gradient * change).cpu() for gradient, change in zip(integral.gradients, last_changes, strict=True)],
            dim=1,
        )
        sums = scores[:, path.complete_layers].sum(-1)
        differences = torch.stack([integral.differences[layer].cpu() for layer in path.complete_layers], dim=-1)
        probabilities = recording.logits.softmax(-1)[range(len(batch)), tokens].tolist()
        return [
            Attribution(
                scores=own_scores.abs() if self._settings.absolute else own_scores.clone(),
                target=token,
                probability=probability,
                completeness=relative_gap(own_sums, own_differences),
            )
            for own_scores, token, probability, own_sums, own_differences in zip(
                scores, tokens, probabilities, sums, differences, strict=True
            )
        ]

    def _integrate(
        self,
        layers: Layers,
        batch: PromptBatch,
        recording: Recording,
        changes: list[Tensor],
        path: IntegrationPath,
        tokens: list[int],
        budget: int,
    ) -> _Integral:
        """Run the rows of `path` in as many groups as `budget` asks for, each from its prefix to its gradients."""
        cost = MemoryCost.of(self._model, batch.length, own_prefix=self._own_prefix)
        left = budget - len(batch) * (cost.prompt + batch.length * cost.activations)
        last_changes = [change[:, -1] if self._own_prefix else change for change in changes]
        integral = _Integral([torch.zeros_like(change, dtype=torch.float32) for change in last_changes], {})
        real_weight = path.real_weight
        for rows in groups_within(path.rows, lambda row: len(batch) * cost.row(row), left):
            prefixes = None
            if self._own_prefix:
                prefixes = sweep_prefix(layers, recording, changes, rows, self._rows_per_pass(batch))
            result = sweep_last_token(
                self._model,
                layers,
                recording,
                batch,
                rows=rows,
                real_weight=real_weight,
                changes=last_changes,
                prefixes=prefixes,
                targets=torch.tensor(tokens),
                quantity=self._settings.quantity,
            )
            check_same_logits(
                result.logits, recording.logits, self._model.dtype, "logits of the last token and recorded ones"
            )
            integral.add(result, rows)
            real_weight = 0.0  # the first group has it for all layers
        return integral

    def _changes(self, layers: Layers, batch: PromptBatch, outputs: list[Tensor]) -> list[Tensor]:
        """The changes z - z0 by layer: `[B, T, D]` (captum) or, at the last position, `[B, D]` (paper)."""
        if not self._own_prefix:
            return outputs
        baselines = self._baseline.outputs(layers, batch)
        return [real - baseline for real, baseline in zip(outputs, baselines, strict=True)]

    def _rows_per_pass(self, batch: PromptBatch) -> int:
        tokens = _TOKENS_PER_PASS.get(batch.input_ids.device.type, _TOKENS_PER_PASS_ELSEWHERE)
        return max(1, tokens // batch.input_ids.numel())
