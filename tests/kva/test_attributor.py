import pytest
from torch import nn
from transformers import PreTrainedModel

from loki.errors import LokiError
from loki.kva import AttributionSettings, make_attributor
from tests.tiny_models import tiny_model

PROMPT = [5, 6, 7, 8, 9, 10]


def snapshot(model: PreTrainedModel) -> dict[str, object]:
    return {
        "attention": model.config._attn_implementation,
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def users_model(attention: str = "eager") -> PreTrainedModel:
    """A model in the middle of its owner's work: partly frozen, partly in training mode."""
    model = tiny_model()
    model.set_attn_implementation(attention)
    model.train()
    model.lm_head.eval()
    model.model.embed_tokens.requires_grad_(False)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("engine", ["fast", "captum", "auto"])
def test_model_leaves_as_it_came(engine: str, attention: str) -> None:
    model = users_model(attention)
    before = snapshot(model)
    with make_attributor(model, AttributionSettings(engine=engine)) as attributor:
        attributor.attribute([PROMPT, PROMPT[:3]], [None, 3])
    assert snapshot(model) == before


class Interrupter:
    """Raises at the n-th call of a module's forward."""

    def __init__(self, module: nn.Module, call: int, error: type[BaseException]) -> None:
        self.calls, self._call, self._error = 0, call, error
        self.handle = module.register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        self.calls += 1
        if self.calls == self._call:
            raise self._error


def calls_of_middle_layer(engine: str) -> int:
    model = users_model()
    counter = Interrupter(model.model.layers[1].mlp, 0, RuntimeError)
    with make_attributor(model, AttributionSettings(engine=engine)) as attributor:
        attributor.attribute([PROMPT], [None])
    return counter.calls


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("engine", ["fast", "captum"])
def test_model_leaves_as_it_came_after_an_interrupt_at_any_moment(engine: str, error: type[BaseException]) -> None:
    calls = calls_of_middle_layer(engine)
    assert calls > 4
    for call in range(1, calls + 1):
        model = users_model()
        before = snapshot(model)
        interrupter = Interrupter(model.model.layers[1].mlp, call, error)
        with pytest.raises(error), make_attributor(model, AttributionSettings(engine=engine)) as attributor:
            attributor.attribute([PROMPT], [None])
        interrupter.handle.remove()
        assert snapshot(model) == before


def test_model_leaves_as_it_came_after_a_refusal() -> None:
    model = tiny_model("bamba")
    before = snapshot(model)
    with make_attributor(model, AttributionSettings(engine="fast")) as attributor, pytest.raises(LokiError):
        attributor.attribute([PROMPT], [None])
    assert snapshot(model) == before
    assert model.config._attn_implementation != "loki_kva"
