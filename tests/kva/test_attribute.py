from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from transformers import AutoModelForCausalLM

import loki
from loki.errors import LokiError
from tests.kva import naive
from tests.kva.test_attributor import snapshot, users_model
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tolerances import assert_close

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [21, 22, 23]]


def test_one_call_gives_captums_scores_of_every_layer() -> None:
    model = tiny_model()
    (found,) = loki.attribute(model, torch.tensor(PROMPTS[:1]))
    for layer, scores in zip(model.model.layers, found.scores, strict=True):
        captum = LayerIntegratedGradients(
            lambda ids: model(ids, use_cache=False).logits[:, -1].softmax(-1)[:, found.target], layer.mlp.down_proj
        )
        ids = torch.tensor(PROMPTS[:1])
        expected = captum.attribute(ids, torch.zeros_like(ids), n_steps=7, method="riemann_trapezoid")[0, -1]
        assert_close(scores, expected.detach())


@pytest.mark.parametrize("definition", ["paper", "captum"])
@pytest.mark.parametrize(
    "inputs",
    [
        PROMPTS,
        {
            "input_ids": torch.tensor([PROMPTS[0], [*PROMPTS[1], 2, 2, 2, 2]]),
            "attention_mask": torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0]]),
        },
        {"input_ids": [PROMPTS[0], [2, 2, 2, 2, *PROMPTS[1]]], "attention_mask": [[1] * 7, [0, 0, 0, 0, 1, 1, 1]]},
        {"input_ids": PROMPTS},
    ],
    ids=["lists", "tensors padded on the right", "lists padded on the left", "lists of a tokenizer"],
)
def test_prompts_of_different_lengths(inputs: Any, definition: str) -> None:
    model = tiny_model()
    reference = naive.paper_scores if definition == "paper" else naive.captum_scores
    for found, prompt in zip(loki.attribute(model, inputs, definition=definition), PROMPTS, strict=True):
        assert_close(found.scores, reference(model, prompt))


def test_a_tensor_with_a_mask_beside_it_and_targets() -> None:
    model = tiny_model()
    ids, mask = torch.tensor([[2, *PROMPTS[1]]]), torch.tensor([[0, 1, 1, 1]])
    (found,) = loki.attribute(model, ids, attention_mask=mask, targets=17, quantity="logit")
    assert_close(found.scores, naive.captum_scores(model, PROMPTS[1], 17, quantity=naive.logit))
    found, _ = loki.attribute(model, PROMPTS, targets=[3, None], position=-2)
    assert_close(found.scores, naive.captum_scores(model, PROMPTS[0][:-1], 3))


def test_texts() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (one,) = loki.attribute(model, "Paris is", tokenizer=tokenizer, definition="paper")
    assert_close(one.scores, naive.paper_scores(model, tokenizer("Paris is")["input_ids"]))
    assert len(loki.attribute(model, ["Paris is", "Rome is a"], tokenizer=tokenizer, definition="paper")) == 2


def test_a_flat_list_is_one_prompt_and_none_is_none() -> None:
    model = tiny_model()
    (found,) = loki.attribute(model, PROMPTS[0], definition="paper")
    assert_close(found.scores, naive.paper_scores(model, PROMPTS[0]))
    assert loki.attribute(model, []) == []


def test_the_model_in_hand_is_left_as_it_was(llama_dir: Path) -> None:
    model = users_model()
    before = snapshot(model)
    loki.attribute(model, PROMPTS)
    assert snapshot(model) == before
    half = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.bfloat16)
    assert loki.attribute(half, PROMPTS)[0].scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("inputs", "changes", "message"),
    [
        ("Paris", {}, "tokenizer="),
        (PROMPTS, {"attention_mask": torch.ones(2, 7)}, "attention_mask .*tensor"),
        ({"pixel_values": 1}, {}, "pixel_values"),
        (torch.ones(1, 2, 3, dtype=torch.long), {}, r"has shape \(1, 2, 3\)"),
        (torch.tensor([PROMPTS[1]]), {"attention_mask": torch.ones(1, 4)}, r"attention_mask has shape \(1, 4\)"),
        (torch.tensor([PROMPTS[1]]), {"attention_mask": torch.zeros(1, 3)}, "has 0 tokens"),
        (torch.tensor([[0.5]]), {}, "whole numbers"),
        (PROMPTS, {"targets": 3}, "one target .* 2 prompts"),
        (PROMPTS, {"targets": [3]}, "1 targets .* 2 prompts"),
        (PROMPTS, {"definition": "shapley"}, "definition is 'shapley'"),
    ],
)
def test_bad_arguments_are_one_line(inputs: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LokiError, match=message):
        loki.attribute(tiny_model(), inputs, **changes)
