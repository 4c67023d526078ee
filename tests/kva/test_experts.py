"""Scores per expert: beside parts worked out by hand, and the block's scores that they add up to."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel

import loki
from loki.errors import LokiError
from loki.kva import Attribution, AttributionSettings, make_attributor
from loki.kva.experts import expert_scores
from loki.models.architectures import mlp_outputs
from tests.kva import naive
from tests.kva.test_sensitivity import drawn_tokens
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]


def attributed(model: PreTrainedModel, definition: str, **changes: Any) -> Attribution:
    settings = AttributionSettings(definition=definition, **changes)
    with make_attributor(model, settings) as attributor:
        return attributor.attribute([PROMPT], [None])[0]


def blocks_of(model: PreTrainedModel) -> dict[int, nn.Module]:
    return {layer: output.block for layer, output in enumerate(mlp_outputs(model)) if output.sparse}


def inputs_of(model: PreTrainedModel, prompt: list[int]) -> dict[int, Tensor]:
    """What goes into every block at the last position, `[1, D]`."""
    seen: dict[int, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _, given, __, layer=layer: seen.__setitem__(layer, given[0][:, -1]))
        for layer, block in blocks_of(model).items()
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def parts_by_hand(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """w_e z_e of each expert `[E, D]`, each from its own weights, and what the shared expert adds, `[D]`."""
    experts = block.experts
    if type(block).__name__ == "GptOssMLP":
        logits = (hidden @ block.router.weight.T + block.router.bias)[0]
        chosen = logits.topk(2)
        weights = chosen.values.softmax(-1)
    elif type(block).__name__ == "DeepseekV3MoE":
        scores = (hidden @ block.gate.weight.T)[0].sigmoid()
        chosen = (scores + block.gate.e_score_correction_bias).topk(2)
        weights = scores[chosen.indices] / scores[chosen.indices].sum() * block.config.routed_scaling_factor
    else:
        chosen = (hidden @ block.gate.weight.T)[0].softmax(-1).topk(2)
        weights = chosen.values / chosen.values.sum() if block.gate.norm_topk_prob else chosen.values
    parts = torch.zeros(len(experts.down_proj), hidden.shape[-1])
    for expert, weight in zip(chosen.indices.tolist(), weights, strict=True):
        up = experts.gate_up_proj[expert]
        if type(block).__name__ == "GptOssMLP":
            mixed = hidden[0] @ up + experts.gate_up_proj_bias[expert]
            gate, linear = mixed[::2].clamp(max=experts.limit), mixed[1::2].clamp(-experts.limit, experts.limit)
            inner = (linear + 1) * gate * torch.sigmoid(gate * experts.alpha)
            parts[expert] = weight * (inner @ experts.down_proj[expert] + experts.down_proj_bias[expert])
        else:
            gate, linear = (up @ hidden[0]).chunk(2)
            parts[expert] = weight * (experts.down_proj[expert] @ (silu(gate) * linear))
    shared = block.shared_experts(hidden)[0] if hasattr(block, "shared_experts") else torch.zeros(hidden.shape[-1])
    return parts, shared


@pytest.mark.parametrize("definition", ["paper", "captum"])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_parts_by_hand_and_their_sum(family: str, definition: str) -> None:
    if family == "gpt_oss" and definition == "captum":
        pytest.skip("Captum computes it, which gives no gradients")
    # Square in GPT-OSS, where no shape tells rows from columns.
    model = tiny_model(family, **({"intermediate_size": 32} if family == "gpt_oss" else {}))
    attribution = attributed(model, definition)
    assert attribution.gradients is not None
    found = expert_scores(model, PROMPT, attribution, definition)
    assert found.keys() == blocks_of(model).keys()
    hidden, zero = inputs_of(model, PROMPT), inputs_of(model, [0] * len(PROMPT))
    for layer, block in blocks_of(model).items():
        parts, shared = parts_by_hand(block, hidden[layer])
        if definition == "captum":
            parts_before, shared_before = parts_by_hand(block, zero[layer])
            parts, shared = parts - parts_before, shared - shared_before
        assert_close(found[layer], parts * attribution.gradients[layer])
        # Complete: with what every token goes through, they are the block's scores.
        assert_close(found[layer].sum(0) + shared * attribution.gradients[layer], attribution.scores[layer])


def test_the_gradients_are_those_of_a_loop_over_the_path() -> None:
    """Scores by `tests/kva/naive.py`, which knows nothing of experts, are the sum over them."""
    model = tiny_model("qwen3_moe")
    found = expert_scores(model, PROMPT, attributed(model, "paper"), "paper")
    expected = naive.paper_scores(model, PROMPT)
    assert_close(torch.stack([found[layer].sum(0) for layer in range(3)]), expected)
    assert all(int(part.any(dim=1).sum()) == 2 for part in found.values()), "two experts are chosen for a token"


def test_llama_4_whose_experts_all_compute() -> None:
    model = tiny_model("llama4_text")
    attribution = attributed(model, "paper")
    assert attribution.gradients is not None
    found = expert_scores(model, PROMPT, attribution, "paper")
    hidden = inputs_of(model, PROMPT)
    for layer, block in blocks_of(model).items():
        logits = (hidden[layer] @ block.router.weight.T)[0].detach()
        expert = int(logits.argmax())
        token = hidden[layer][0] * logits[expert].sigmoid()
        gate, linear = (token @ block.experts.gate_up_proj[expert]).chunk(2)
        part = (silu(gate) * linear) @ block.experts.down_proj[expert]
        assert found[layer].any(dim=1).nonzero().flatten().tolist() == [expert]
        assert_close(found[layer][expert], part * attribution.gradients[layer])


def naive_sensitivities(model: PreTrainedModel, prompt: list[int]) -> dict[int, Tensor]:
    """Zeros added to the output of each expert for each token, and the squared gradients at them; by layer `[E, D]`."""
    leaves: dict[int, Tensor] = {}

    def forward(layer: int, block: Any, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        chosen = (flat @ block.gate.weight.T).softmax(-1).topk(2)
        weights = chosen.values / (chosen.values.sum(-1, keepdim=True) if block.gate.norm_topk_prob else 1)
        leaves[layer] = torch.zeros(len(flat), 4, flat.shape[-1], requires_grad=True)
        rows = []
        for token, experts, shares in zip(range(len(flat)), chosen.indices.tolist(), weights, strict=True):
            row = torch.zeros(flat.shape[-1])
            for expert, share in zip(experts, shares, strict=True):
                gate, linear = (block.experts.gate_up_proj[expert] @ flat[token]).chunk(2)
                own = block.experts.down_proj[expert] @ (silu(gate) * linear)
                row = row + share * (own + leaves[layer][token, expert])
            rows.append(row)
        return torch.stack(rows).reshape(hidden.shape)

    tokens = drawn_tokens(model, prompt)
    for layer, block in blocks_of(model).items():
        block.forward = partial(forward, layer, block)
    logits = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
    total = logits.log_softmax(-1)[range(len(tokens)), tokens].sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return {layer: own.square().sum(0) for layer, own in zip(leaves, gradients, strict=True)}


def test_sensitivities_are_squared_gradients_at_each_experts_output() -> None:
    model = tiny_model("qwen3_moe")
    prompts = [PROMPT, [21, 22, 23], PROMPT[::-1]]  # padded, in one batch
    settings = AttributionSettings(definition="sensitivity", per_expert=True)
    with make_attributor(model, settings) as attributor:
        found = attributor.attribute(prompts, [None] * 3)
    with make_attributor(model, AttributionSettings(definition="sensitivity")) as attributor:
        whole = attributor.attribute(prompts, [None] * 3)
    for prompt, own, without in zip(prompts, found, whole, strict=True):
        assert own.experts is not None and without.experts is None
        assert torch.equal(own.scores, without.scores)
        expected = naive_sensitivities(tiny_model("qwen3_moe"), prompt)
        assert own.experts.keys() == expected.keys()
        for layer, scores in expected.items():
            assert_close(own.experts[layer], scores)


@pytest.mark.parametrize("family", ["llama4_text", "gpt_oss", "deepseek_v3"])
def test_sensitivities_of_other_forms(family: str) -> None:
    """A weighted mean of what the experts have: one expert with weight one has the block's own sensitivity."""
    model = tiny_model(family)
    (found,) = loki.attribute(model, PROMPT, definition="sensitivity", per_expert=True)
    assert found.experts is not None and found.experts.keys() == blocks_of(model).keys()
    for layer, scores in found.experts.items():
        count = len(blocks_of(model)[layer].experts.down_proj)
        assert scores.shape == (count, 32) and scores.any(dim=1).sum() >= 1
        if family == "llama4_text":  # one expert a token, whose input is weighted and not its output
            assert_close(scores.sum(0), found.scores[layer])


@pytest.mark.parametrize("definition", ["paper", "captum"])
def test_asked_for_with_the_attribution(definition: str) -> None:
    model = tiny_model("qwen3_moe")
    prompts = [PROMPT, PROMPT[:4]]
    found = loki.attribute(model, prompts, definition=definition, per_expert=True)
    plain = loki.attribute(model, prompts, definition=definition)
    for prompt, own, without in zip(prompts, found, plain, strict=True):
        assert torch.equal(own.scores, without.scores) and without.experts is None
        assert own.experts is not None
        expected = expert_scores(model, prompt, without, definition)
        assert own.experts.keys() == expected.keys()
        assert all(torch.equal(own.experts[layer], expected[layer]) for layer in expected)
    (cut,) = loki.attribute(model, PROMPT, definition=definition, per_expert=True, position=3)
    (alone,) = loki.attribute(model, PROMPT[:4], definition=definition, per_expert=True)
    assert cut.experts is not None and alone.experts is not None
    assert all(torch.equal(cut.experts[layer], alone.experts[layer]) for layer in cut.experts)


def test_refusals() -> None:
    model = tiny_model("qwen3_moe")
    with pytest.raises(LokiError, match="Captum"):
        expert_scores(model, PROMPT, attributed(model, "paper", engine="captum", steps=2), "paper")
    with pytest.raises(LokiError, match="sensitivities"):
        expert_scores(model, PROMPT, attributed(model, "sensitivity"), "paper")
    with pytest.raises(LokiError, match="absolute"):
        expert_scores(model, PROMPT, attributed(model, "paper", absolute=True), "paper")
    with pytest.raises(LokiError, match="something else"):
        expert_scores(model, PROMPT[:-1], attributed(model, "paper"), "paper")
    with pytest.raises(LokiError, match="llama model"):
        expert_scores(tiny_model(), PROMPT, attributed(tiny_model(), "paper"), "paper")
    with pytest.raises(LokiError, match="llama model"):
        loki.attribute(tiny_model(), PROMPT, definition="sensitivity", per_expert=True)
    with pytest.raises(LokiError, match="Captum"):  # which `auto` turns to, as the baseline's experts are others
        loki.attribute(tiny_model("gpt_oss"), PROMPT, per_expert=True)
    for changes in ({"absolute": True}, {"engine": "captum"}):
        with pytest.raises(LokiError, match="--per-expert"):
            AttributionSettings(per_expert=True, **changes)
    attribution = attributed(model, "paper")
    block: Any = blocks_of(model)[1]
    block.register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(LokiError, match="layer"):
        expert_scores(model, PROMPT, attribution, "paper")
