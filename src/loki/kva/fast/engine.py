"""The fast engine: the numbers of Captum, or of the paper's equations, at the price of a few forward passes.

Let z be the MLP block's output at layer l and the last position of a prompt, z0 the activation baseline, and F the
probability (or logit) of the target token. The score of output node j, that is of row j of `down_proj.weight`, is

    score_j = (z - z0)_j * sum_k w_k dF/dz_j    at    z0 + a_k (z - z0)

with points a_k and weights w_k of an integration rule. Naively (definition `paper`, where z0 = 0; the tests compare
with this loop, `tests/kva/naive.py`):

    for layer in layers:
        for alpha, weight in rule:                       # the whole model, once per layer and point
            leaf = (alpha * z[layer]).requires_grad_()
            with output_hook(layer.mlp, lambda out: torch.cat([out[:, :-1], leaf[:, None]], dim=1)):
                F = model(ids).logits[:, -1].softmax(-1)[:, target]
            score[layer] += weight * z[layer] * torch.autograd.grad(F.sum(), leaf)[0]

Causality makes it cheap. z reaches F through the last position alone; earlier positions act on it only by their keys
and values. So gradients need a graph of single tokens. And all at or below layer l is the original run, which every
point shares. Hence three passes over the model's own layers:

1. record: the original run; keep keys and values (`record.py`).
2. prefix pass: where the path moves the earlier positions as well (definition `captum`, whose z0 are the outputs on a
   sequence of token id 0), carry those of every point through the layers above its own, without gradients, and keep
   their keys and values (`prefix_pass.py`).
3. last-token pass: carry the last position of all points of all layers through the model in one growing batch, and
   differentiate once (`last_token_pass.py`).

A model whose layers mix positions by anything but attention breaks this silently, so every result is checked against
the original run's logits (`self_check.py`); a model that fails is refused.

Shapes, here and in the passes: B prompts; T positions, padded on the left; L layers; D hidden size; P points;
H query heads, K key-value heads, d and d_v the widths of their keys and values; V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.kva.attributor import Attribution, FreezesModel
from loki.kva.fast.attention import attention_replaced
from loki.kva.fast.last_token_pass import LastTokenResult, run_last_token
from loki.kva.fast.layers import Layers, find_layers
from loki.kva.fast.memory import MemoryCost, free_memory, parts_within
from loki.kva.fast.path import IntegrationPath, PathPoint, groups_within
from loki.kva.fast.prefix_pass import run_prefixes
from loki.kva.fast.record import Recording, ZeroTokenBaseline, depends_on_length, last_logits, record
from loki.kva.fast.self_check import check_attention_alone_mixes, check_same_logits
from loki.kva.hooks import input_device, vocab_size
from loki.kva.integration import completeness_gap, integration_rule
from loki.kva.prompts import PromptBatch, attributed_prompts, checked_targets
from loki.kva.settings import AttributionSettings, Definition
from loki.models.architectures import max_positions

# Tokens that go through a layer together in the prefix pass: on a CPU they should stay in its caches.
_TOKENS_AT_ONCE = {"cpu": 1024}
_TOKENS_AT_ONCE_ELSEWHERE = 16384
_EXAMINED_TOKENS = 64


class FastAttributor(FreezesModel):
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
        self._own_prefix = settings.definition is Definition.CAPTUM  # whether every point has a prefix of its own
        self._layers: Layers | None = None
        self._baseline = ZeroTokenBaseline(model)

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        """Attribute prompts together, or in parts that fit the memory; see `Attributor.attribute`.

        Raises:
            LokiError: also where the memory budget is too small for a prompt.
            NotExactError: where the engine cannot compute this model exactly.
        """
        prompts = attributed_prompts(batch, self._settings.position, vocab_size(self._model))
        wanted = checked_targets(targets, len(prompts), vocab_size(self._model))
        if not prompts:
            return []
        layers = self.examine()
        attributions: dict[int, Attribution] = {}
        budget = free_memory(self._model) if self._budget is None else self._budget
        with attention_replaced(self._model):
            apart = depends_on_length(self._model)
            for part in parts_within(prompts, self._least_memory, budget, equal_lengths_only=apart):
                found = self._attribute_part(
                    layers, [prompts[index] for index in part], [wanted[index] for index in part], budget
                )
                attributions |= dict(zip(part, found, strict=True))
        return [attributions[index] for index in range(len(prompts))]

    def examine(self) -> Layers:
        """Find the layers, and check once that the engine can compute this model.

        On a prompt of its own, so that what is found, to the last bit, does not depend on which prompt comes first.

        Raises:
            NotExactError: if a layer mixes tokens outside its attention, or the engine's attention does not compute
                what the model's own does.
            LokiError: if the model computes NaN.
        """
        if self._layers is None:
            tokens = vocab_size(self._model)
            longest = max_positions(self._model.config) or _EXAMINED_TOKENS
            prompt = [(1 + 7919 * place) % tokens for place in range(max(2, min(_EXAMINED_TOKENS, longest)))]
            batch = PromptBatch.of([prompt], input_device(self._model))
            with torch.no_grad():
                own = last_logits(self._model, batch)
            if own.isnan().any():
                raise LokiError("the model computes NaN: fetch it again, or use --dtype float32 if it was float16")
            with attention_replaced(self._model):
                layers = find_layers(self._model, batch.input_ids)
                recorded = record(self._model, layers, batch, keep_all_positions=False).logits
                check_same_logits(recorded, own, self._model.dtype, "recorded logits and the model's own")
                check_attention_alone_mixes(self._model, layers, prompt)
            self._layers = layers
        return self._layers

    def _least_memory(self, prompts: Sequence[list[int]]) -> int:
        """The least memory in which prompts can be computed together: one point at a time."""
        length = max(map(len, prompts))
        cost = MemoryCost.of(self._model, length, own_prefix=self._own_prefix)
        original_and_point = 2 * cost.point(PathPoint(0, 0.0, 0.0))
        return len(prompts) * (cost.prompt + length * cost.activations + original_and_point)

    def _attribute_part(
        self, layers: Layers, prompts: list[list[int]], targets: list[int | None], budget: int
    ) -> list[Attribution]:
        batch = PromptBatch.of(prompts, input_device(self._model))
        recording = record(self._model, layers, batch, keep_all_positions=self._own_prefix)
        argmax = recording.logits.argmax(-1).tolist()
        tokens = [own if target is None else target for own, target in zip(argmax, targets, strict=True)]
        deltas = self._deltas(layers, batch, recording)
        rule = integration_rule(self._settings.ig_method, self._settings.steps)
        path = IntegrationPath.of(rule, len(layers), last_position_only=not self._own_prefix)

        integral = self._integrate(layers, batch, recording, deltas, path, tokens, budget)
        # (z - z0) * sum_k w_k dF/dz, by layer: [B, D] each -> [B, L, D]
        products = [
            (gradient * delta).cpu()
            for gradient, delta in zip(integral.gradients, self._at_last_position(deltas), strict=True)
        ]
        scores = torch.stack(products, dim=1)
        gradients = torch.stack([gradient.float().cpu() for gradient in integral.gradients], dim=1)
        sums = scores[:, path.complete_layers].sum(-1)  # [B, complete layers]
        differences = torch.stack([integral.differences[layer].cpu() for layer in path.complete_layers], dim=-1)
        probabilities = recording.logits.softmax(-1)[range(len(batch)), tokens].tolist()
        return [
            Attribution(
                scores=own_scores.abs() if self._settings.absolute else own_scores.clone(),
                target=token,
                probability=probability,
                completeness=completeness_gap(own_sums, own_differences),
                gradients=own_gradients.clone(),
            )
            for own_scores, own_gradients, token, probability, own_sums, own_differences in zip(
                scores, gradients, tokens, probabilities, sums, differences, strict=True
            )
        ]

    def _integrate(
        self,
        layers: Layers,
        batch: PromptBatch,
        recording: Recording,
        deltas: list[Tensor],
        path: IntegrationPath,
        tokens: list[int],
        budget: int,
    ) -> "_Integral":
        """Run the points of `path` in as many groups as `budget` asks for, each from its prefix to its gradients."""
        cost = MemoryCost.of(self._model, batch.length, own_prefix=self._own_prefix)
        left = budget - len(batch) * (cost.prompt + batch.length * cost.activations)
        last_deltas = self._at_last_position(deltas)
        integral = _Integral([torch.zeros_like(delta, dtype=torch.float32) for delta in last_deltas], {})
        original_weight = path.original_weight
        for points in groups_within(path.points, lambda point: len(batch) * cost.point(point), left):
            prefixes = None
            if self._own_prefix:
                prefixes = run_prefixes(layers, recording, deltas, points, _points_at_once(batch))
            result = run_last_token(
                self._model,
                layers,
                recording,
                batch,
                points=points,
                original_weight=original_weight,
                deltas=last_deltas,
                prefixes=prefixes,
                targets=torch.tensor(tokens),
                quantity=self._settings.quantity,
            )
            check_same_logits(
                result.logits, recording.logits, self._model.dtype, "logits of the last token and recorded ones"
            )
            integral.add(result, points)
            original_weight = 0.0  # the first group has it for all layers
        return integral

    def _deltas(self, layers: Layers, batch: PromptBatch, recording: Recording) -> list[Tensor]:
        """By layer z - z0: at all positions, `[B, T, D]` (captum); at the last, where z0 = 0, `[B, D]` (paper)."""
        if not self._own_prefix:
            return recording.last_outputs
        baselines = self._baseline.outputs(layers, batch)
        return [z - z0 for z, z0 in zip(recording.outputs, baselines, strict=True)]

    def _at_last_position(self, deltas: list[Tensor]) -> list[Tensor]:
        return [delta[:, -1] for delta in deltas] if self._own_prefix else deltas  # [B, D] by layer


@dataclass(frozen=True)
class _Integral:
    """Weighted gradients summed over the points so far, by layer, `[B, D]`, and F(z) - F(z0) of some layers, `[B]`."""

    gradients: list[Tensor]
    differences: dict[int, Tensor]

    def add(self, result: LastTokenResult, points: Sequence[PathPoint]) -> None:
        for layer, gradient in result.gradients.items():
            self.gradients[layer] += gradient
        original, *others = result.values  # [R, B]
        for point, values in zip(points, others, strict=True):
            if point.alpha == 0.0:
                self.differences[point.layer] = original - values


def _points_at_once(batch: PromptBatch) -> int:
    tokens = _TOKENS_AT_ONCE.get(batch.input_ids.device.type, _TOKENS_AT_ONCE_ELSEWHERE)
    return max(1, tokens // batch.input_ids.numel())
