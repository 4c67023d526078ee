import pytest
import torch

from loki.kva.attributor import NotExactError
from loki.kva.fast.attention import attention_replaced
from loki.kva.fast.engine import FastAttributor
from loki.kva.fast.self_check import check_same_logits
from loki.kva.settings import AttributionSettings
from tests.tiny_models import tiny_model

PROMPT = [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("broken", [float("nan"), 5.0])
def test_one_wrong_prompt_of_a_batch_is_noticed(broken: float) -> None:
    expected = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    check_same_logits(expected + 1e-7, expected, torch.float32, "logits")
    actual = expected.clone()
    actual[1, 7] = broken
    with pytest.raises(NotExactError, match="logits differ"):
        check_same_logits(actual, expected, torch.float32, "logits")


def test_layer_that_looks_at_its_neighbours_is_noticed_on_every_prompt() -> None:
    """A causal convolution beside the attention, which nothing but the self-check can see."""
    model = tiny_model()

    def convolve(_module, _inputs, output):
        return output + 0.05 * output.roll(1, dims=1) if output.shape[1] > 1 else output

    with FastAttributor(model, AttributionSettings()) as attributor:
        attributor.attribute([PROMPT], [None])
        model.model.layers[1].mlp.up_proj.register_forward_hook(convolve)
        with pytest.raises(NotExactError, match="logits of the last token"):
            attributor.attribute([PROMPT], [None])


def test_model_whose_own_attention_differs_from_the_engines_is_noticed() -> None:
    model = tiny_model()
    attention = model.model.layers[0].self_attn

    def shrink(_module, _inputs, output):
        own = model.config._attn_implementation != "loki_kva"
        return (output[0] * 0.9, *output[1:]) if own else output

    attention.register_forward_hook(shrink)
    with FastAttributor(model, AttributionSettings()) as attributor, pytest.raises(NotExactError, match="model's own"):
        attributor.attribute([PROMPT], [None])


def test_attention_to_later_tokens_is_refused() -> None:
    model = tiny_model()
    model.model.layers[1].self_attn.is_causal = False
    with FastAttributor(model, AttributionSettings()) as attributor, pytest.raises(NotExactError, match="later tokens"):
        attributor.attribute([PROMPT], [None])


def test_attention_is_the_models_own_after_the_block() -> None:
    model = tiny_model()
    with attention_replaced(model):
        assert model.config._attn_implementation == "loki_kva"
    assert model.config._attn_implementation == "sdpa"
