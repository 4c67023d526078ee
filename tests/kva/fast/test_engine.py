import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from loki.errors import LokiError
from loki.kva.attributor import NotExactWarning
from loki.kva.fast.last_token_pass import run_last_token
from loki.kva.prompts import PromptError
from loki.kva.settings import IG_METHODS
from tests.kva import naive
from tests.kva.attributing import PROMPT, attribute
from tests.tiny_models import ATTENTION_FAMILIES, FAMILIES, tiny_model
from tests.tolerances import assert_close

OTHERS = [[21, 22, 23], [31], [41, 42, 43, 44, 45, 46, 47, 48]]


@pytest.mark.parametrize("family", [*FAMILIES, *ATTENTION_FAMILIES])
def test_captum_definition_equals_captum_itself(family: str) -> None:
    model = tiny_model(family)
    (found,) = attribute(model, [PROMPT])
    assert found.target == naive.argmax(model, PROMPT)
    assert_close(found.scores, naive.captum_scores(model, PROMPT))


@pytest.mark.parametrize("family", [*FAMILIES, *ATTENTION_FAMILIES])
def test_paper_definition_equals_the_papers_equations(family: str) -> None:
    model = tiny_model(family)
    (found,) = attribute(model, [PROMPT], definition="paper")
    assert_close(found.scores, naive.paper_scores(model, PROMPT))


@pytest.mark.parametrize("method", IG_METHODS)
@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.parametrize("family", ["llama", "gemma2"])  # plain residual form, and a norm behind the MLP
def test_rules_and_steps(family: str, method: str, steps: int) -> None:
    model = tiny_model(family)
    (found,) = attribute(model, [PROMPT], ig_method=method, steps=steps)
    assert_close(found.scores, naive.captum_scores(model, PROMPT, steps=steps, method=method))


def test_one_point_of_gauss_legendre() -> None:
    model = tiny_model()
    (found,) = attribute(model, [PROMPT], ig_method="gausslegendre", steps=1)
    assert_close(found.scores, naive.captum_scores(model, PROMPT, steps=1, method="gausslegendre"))


@pytest.mark.parametrize("method", IG_METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rules_of_the_paper_definition(family: str, method: str) -> None:
    """The equations leave the rule open; Captum's IntegratedGradients knows them all."""
    model = tiny_model(family)
    found, expected = (
        attribute(model, [PROMPT], definition="paper", ig_method=method, steps=5, engine=engine)[0]
        for engine in ("fast", "captum")
    )
    assert_close(found.scores, expected.scores)


@pytest.mark.parametrize("steps", [2, 5])
def test_paper_definition_at_other_steps(steps: int) -> None:
    model = tiny_model("qwen2")
    (found,) = attribute(model, [PROMPT], definition="paper", steps=steps)
    assert_close(found.scores, naive.paper_scores(model, PROMPT, steps=steps))


@pytest.mark.parametrize("target", [0, 17, 319])
def test_targets(target: int) -> None:
    model = tiny_model()
    (found,) = attribute(model, [PROMPT], [target])
    assert found.target == target
    with torch.no_grad():
        expected = float(naive.probability(model, torch.tensor([PROMPT]), target))
    assert math.isclose(found.probability, expected, rel_tol=1e-5)
    assert_close(found.scores, naive.captum_scores(model, PROMPT, target))


def test_logit_as_the_attributed_quantity() -> None:
    model = tiny_model()
    (captum,) = attribute(model, [PROMPT], quantity="logit")
    (paper,) = attribute(model, [PROMPT], quantity="logit", definition="paper")
    assert_close(captum.scores, naive.captum_scores(model, PROMPT, quantity=naive.logit))
    assert_close(paper.scores, naive.paper_scores(model, PROMPT, quantity=naive.logit))


def test_absolute_scores() -> None:
    model = tiny_model()
    (signed,), (absolute,) = attribute(model, [PROMPT]), attribute(model, [PROMPT], absolute=True)
    assert bool((signed.scores < 0).any())
    assert torch.equal(absolute.scores, signed.scores.abs())
    assert absolute.completeness == signed.completeness


@pytest.mark.parametrize("position", [0, 4, -3])
def test_earlier_position_is_captums_score_of_the_prediction_made_there(position: int) -> None:
    model = tiny_model()
    input_ids = torch.tensor([PROMPT])
    (found,) = attribute(model, [PROMPT], [17], position=position)

    def prediction(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids).logits[:, position].softmax(-1)[:, 17]

    module = model.model.layers[1].mlp.down_proj
    whole = LayerIntegratedGradients(prediction, module).attribute(
        input_ids, baselines=torch.zeros_like(input_ids), n_steps=7, method="riemann_trapezoid"
    )
    assert_close(found.scores[1], whole[0, position].detach())


@pytest.mark.parametrize("definition", ["captum", "paper"])
@pytest.mark.parametrize("family", [*FAMILIES, *ATTENTION_FAMILIES])
def test_batch_of_different_lengths_equals_one_by_one(family: str, definition: str) -> None:
    model = tiny_model(family)
    prompts, targets = [PROMPT, *OTHERS], [None, 7, None, 0]
    together = attribute(model, prompts, targets, definition=definition)
    for found, prompt, target in zip(together, prompts, targets, strict=True):
        (alone,) = attribute(model, [prompt], [target], definition=definition)
        assert found.target == alone.target
        assert math.isclose(found.probability, alone.probability, rel_tol=1e-5)
        assert_close(found.scores, alone.scores)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(st.integers(0, 319), min_size=1, max_size=9), min_size=1, max_size=4), st.randoms())
def test_attributions_follow_their_prompts(prompts: list[list[int]], chance) -> None:
    model = tiny_model(num_hidden_layers=2)
    order = list(range(len(prompts)))
    chance.shuffle(order)
    found = attribute(model, prompts)
    shuffled = attribute(model, [prompts[index] for index in order])
    for index, attribution in zip(order, shuffled, strict=True):
        assert_close(attribution.scores, found[index].scores)


def test_rope_that_knows_the_length_is_not_padded() -> None:
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 10000.0}
    model = tiny_model("phi3", rope_parameters=longrope, original_max_position_embeddings=8)
    together = attribute(model, [PROMPT, *OTHERS])
    for found, prompt in zip(together, [PROMPT, *OTHERS], strict=True):
        assert_close(found.scores, naive.captum_scores(model, prompt))


@pytest.mark.parametrize("definition", ["captum", "paper"])
@pytest.mark.parametrize("budget", [300_000, 450_000, 1_000_000])
def test_memory_budget_changes_nothing(definition: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(num_hidden_layers=4)
    points: list[int] = []

    def counted(*arguments, **keywords):
        points.append(len(keywords["points"]))
        return run_last_token(*arguments, **keywords)

    monkeypatch.setattr("loki.kva.fast.engine.run_last_token", counted)
    free = attribute(model, [PROMPT, *OTHERS], definition=definition)
    (all_points,) = points
    tight = attribute(model, [PROMPT, *OTHERS], definition=definition, memory_budget=budget)
    assert len(points) > 2
    assert min(points[1:]) < all_points
    for found, expected in zip(tight, free, strict=True):
        assert_close(found.scores, expected.scores)
        assert math.isclose(found.completeness, expected.completeness, rel_tol=1e-3)


def test_too_small_a_memory_budget_is_refused() -> None:
    needs = (
        r"prompt 0 of the batch: its 11 tokens need 66.62 KiB beside the model, but 1000 bytes may be used: raise the"
    )
    with pytest.raises(PromptError, match=needs):
        attribute(tiny_model(), [PROMPT], memory_budget=1000)


@pytest.mark.parametrize("shared", [0, 1])
def test_sizes_that_differ_from_layer_to_layer(shared: int) -> None:
    """Layers of Gemma 4 differ in their head width, and may share keys and values, which the fast engine refuses."""
    pytest.importorskip("transformers.models.gemma4")
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    heads = {"head_dim": 8, "global_head_dim": 16, "num_kv_shared_layers": shared}
    inputs = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320}
    model = tiny_model("gemma4_text", layer_types=kinds, sliding_window=6, **heads, **inputs)
    with pytest.warns(NotExactWarning) if shared else nullcontext():
        (found,) = attribute(model, [PROMPT], engine="auto")
    assert_close(found.scores, naive.captum_scores(model, PROMPT))


@pytest.mark.parametrize("definition", ["captum", "paper"])
@pytest.mark.parametrize("quantity", ["probability", "logit"])
def test_completeness_vanishes_with_many_steps(definition: str, quantity: str) -> None:
    model = tiny_model()
    few, many = (
        attribute(model, [PROMPT], definition=definition, quantity=quantity, ig_method="riemann_middle", steps=steps)[0]
        for steps in (2, 200)
    )
    assert many.completeness < 1e-3 < few.completeness


def test_no_completeness_gap_is_hidden_by_the_rule() -> None:
    """Captum's trapezoid weights sum to 6/7 at 7 steps, and the gap says so."""
    model = tiny_model()
    (found,) = attribute(model, [PROMPT], quantity="logit")
    assert 0.1 < found.completeness < 0.2


def test_no_gradient_reaches_a_parameter() -> None:
    model = tiny_model()
    attribute(model, [PROMPT])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_works_where_gradients_are_off() -> None:
    model = tiny_model()
    with torch.no_grad():
        (found,) = attribute(model, [PROMPT])
    assert_close(found.scores, naive.captum_scores(model, PROMPT))


def test_offloaded_model_gives_the_same_scores(llama_dir: Path, tmp_path: Path) -> None:
    device_map = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    device_map |= {"model.layers.1": "disk", "model.layers.2": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    whole = AutoModelForCausalLM.from_pretrained(llama_dir)
    spread = AutoModelForCausalLM.from_pretrained(llama_dir, device_map=device_map, offload_folder=tmp_path)
    for definition in ("captum", "paper"):
        (expected,) = attribute(whole, [PROMPT], definition=definition)
        (found,) = attribute(spread, [PROMPT], definition=definition)
        assert_close(found.scores, expected.scores)


def test_empty_batch() -> None:
    assert attribute(tiny_model(), []) == []


@pytest.mark.parametrize(
    ("prompts", "targets", "changes", "message"),
    [
        ([[]], [None], {}, "has 0 tokens: position -1"),
        ([PROMPT], [None], {"position": 11}, "has 11 tokens: position 11"),
        ([[5, 320]], [None], {}, "prompt 0 .*token id 320"),
        ([PROMPT], [320], {}, "target 0 .*token id 320"),
        ([PROMPT], [1, 2], {}, "2 targets .* 1 prompts"),
    ],
)
@pytest.mark.parametrize("engine", ["fast", "captum"])
def test_bad_input_is_refused(prompts, targets, changes, message: str, engine: str) -> None:
    with pytest.raises(LokiError, match=message):
        attribute(tiny_model(), prompts, targets, engine=engine, **changes)
