from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.kva import AttributionSettings, make_attributor
from loki.kva.attributor import Attribution
from loki.kva.prompts import PromptError
from loki.kva.sensitivity import SensitivityAttributor, seed_of_prompt
from loki.kva.settings import DEFAULT_STEPS
from tests.kva import naive
from tests.kva.test_attributor import snapshot, users_model
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [21, 22, 23], [31], [41, 42, 43, 44, 45, 46]]


def sensitivities(model: PreTrainedModel, prompts: list[list[int]], budget: int | None = None, **changes: Any):
    settings = AttributionSettings(definition="sensitivity", **changes)
    with make_attributor(model, settings, memory_budget=budget) as attributor:
        return [found.scores for found in attributor.attribute(prompts, [None] * len(prompts))]


def drawn_tokens(model: PreTrainedModel, prompt: list[int], seed: int = 0) -> list[int]:
    """One draw a position, the slow way."""
    with torch.no_grad():
        shares = model(input_ids=torch.tensor([prompt])).logits[0].double().softmax(-1).numpy()
    chances = np.random.default_rng(seed_of_prompt(seed, prompt)).random(len(prompt))
    return [int((np.cumsum(own) <= chance).sum()) for own, chance in zip(shares, chances, strict=True)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "bamba", "opt"])
def test_equals_squared_gradients_layer_by_layer(family: str) -> None:
    """Also of prompts of different lengths in one batch, state spaces, experts, and outputs without a batch."""
    changes = {"ffn_dim": 48, "word_embed_proj_dim": 32} if family == "opt" else {}
    model = tiny_model(family, **changes)
    for prompt, found in zip(PROMPTS, sensitivities(model, PROMPTS), strict=True):
        assert found.dtype == torch.float32
        assert_close(found, naive.sensitivities(model, prompt, drawn_tokens(model, prompt)))


def test_of_the_texts_own_tokens() -> None:
    model = tiny_model()
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    for prompt, found in zip(prompts, sensitivities(model, prompts, sensitivity="empirical"), strict=True):
        assert_close(found, naive.sensitivities(model, prompt, prompt[1:]))


def test_mean_over_draws_is_the_fisher_information() -> None:
    """Of one position: the expectation over all tokens of the vocabulary, each with its probability."""
    model, prompt = tiny_model(num_hidden_layers=1), [7]
    with torch.no_grad():
        shares = model(input_ids=torch.tensor([prompt])).logits[0, 0].softmax(-1)
    expected = sum(
        share * naive.sensitivities(model, prompt, [token]) for token, share in enumerate(shares) if share > 1e-4
    )
    found = torch.stack([sensitivities(model, [prompt], seed=seed)[0] for seed in range(300)]).mean(0)
    assert float((found - expected).norm() / expected.norm()) < 0.25


def test_draws_depend_on_seed_and_prompt_alone() -> None:
    model = tiny_model()
    together, reverse = sensitivities(model, PROMPTS), sensitivities(model, PROMPTS[::-1])[::-1]
    for one, other, prompt in zip(together, reverse, PROMPTS, strict=True):
        assert_close(one, other)
        assert_close(one, sensitivities(model, [prompt])[0])
    assert not torch.equal(sensitivities(model, PROMPTS, seed=1)[0], together[0])
    assert len({seed_of_prompt(seed, prompt) for seed in range(3) for prompt in PROMPTS}) == 12


def test_memory_budget_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    free = sensitivities(model, PROMPTS)
    sizes: list[int] = []
    attribute_part = SensitivityAttributor._attribute_part

    def counted(self: SensitivityAttributor, prompts: list[list[int]]) -> list[Attribution]:
        sizes.append(len(prompts))
        return attribute_part(self, prompts)

    monkeypatch.setattr(SensitivityAttributor, "_attribute_part", counted)
    for found, expected in zip(sensitivities(model, PROMPTS, budget=250_000), free, strict=True):
        assert_close(found, expected)
    assert sum(sizes) == len(PROMPTS) and len(sizes) > 1


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_sixteen_bit_types(dtype: torch.dtype, bound: float) -> None:
    model = tiny_model()
    exact = sensitivities(model, PROMPTS[:1], sensitivity="empirical")[0]
    found = sensitivities(model.to(dtype), PROMPTS[:1], sensitivity="empirical")[0]
    assert float((found - exact).norm() / exact.norm()) < bound


def test_says_that_there_is_no_target() -> None:
    with make_attributor(tiny_model(), AttributionSettings(definition="sensitivity")) as attributor:
        (found,) = attributor.attribute([PROMPTS[0]], [None])
    assert found.target == -1
    assert np.isnan([found.probability, found.completeness]).all()


def test_model_leaves_as_it_came() -> None:
    model = users_model()
    before = snapshot(model)
    sensitivities(model, PROMPTS)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("prompts", "budget", "changes", "message"),
    [
        ([[5, 6], [7]], None, {"sensitivity": "empirical"}, "prompt 1 .*one token"),
        ([[5, 320]], None, {}, "token id 320"),
        ([[]], None, {}, "has 0 tokens"),
    ],
)
def test_bad_prompts_are_refused(prompts: list[list[int]], budget: int | None, changes: Any, message: str) -> None:
    with pytest.raises(LokiError, match=message):
        sensitivities(tiny_model(), prompts, budget, **changes)


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(PromptError, match=r"9 tokens .*1000 bytes"):
        sensitivities(tiny_model(), PROMPTS, budget=1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": DEFAULT_STEPS + 1},
        {"ig_method": "gausslegendre"},
        {"engine": "captum"},
        {"quantity": "logit"},
        {"absolute": True},
        {"position": -2},
    ],
)
def test_settings_of_attribution_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LokiError, match=f"--{next(iter(changes)).replace('_', '-')} .*definition sensitivity"):
        AttributionSettings(definition="sensitivity", **changes)


def test_attribution_has_no_sensitivity() -> None:
    with pytest.raises(LokiError, match="sensitivity empirical"):
        AttributionSettings(sensitivity="empirical")
