import warnings
from typing import Any

import pytest
import torch

from loki.kva import AttributionSettings, make_attributor
from loki.kva.attributor import NotExactError, NotExactWarning
from loki.kva.captum_engine import CaptumAttributor
from loki.kva.fast.from_cache import FromCacheAttributor
from loki.kva.prompts import PromptError
from tests.kva import naive
from tests.kva.test_attributor import snapshot
from tests.tiny_models import HYBRID_FAMILIES, tiny_model
from tests.tolerances import assert_close

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [21, 22, 23], [31]]


def from_cache(model, prompts, targets=None, budget: int | None = None, **changes: Any):
    settings = AttributionSettings(definition="paper", **changes)
    with FromCacheAttributor(model, settings, budget) as attributor:
        return attributor.attribute(prompts, targets or [None] * len(prompts))


@pytest.mark.parametrize("family", ["llama", "gemma2", *HYBRID_FAMILIES])
def test_equals_the_papers_equations(family: str) -> None:
    model = tiny_model(family)
    before = snapshot(model)
    for found, prompt in zip(from_cache(model, PROMPTS), PROMPTS, strict=True):
        assert found.target == naive.argmax(model, prompt)
        assert_close(found.scores, naive.paper_scores(model, prompt))
    assert snapshot(model) == before


@pytest.mark.parametrize("changes", [{"ig_method": "riemann_trapezoid"}, {"ig_method": "gausslegendre", "steps": 3}])
def test_agrees_with_captum_in_all_it_reports(changes: dict[str, Any]) -> None:
    model = tiny_model("lfm2")
    for quantity in ("probability", "logit"):
        settings = AttributionSettings(definition="paper", quantity=quantity, **changes)
        with CaptumAttributor(model, settings) as captum:
            (expected,) = captum.attribute(PROMPTS[:1], [17])
        (found,) = from_cache(model, PROMPTS[:1], [17], quantity=quantity, **changes)
        assert_close(found.scores, expected.scores)
        assert found.probability == pytest.approx(expected.probability, rel=1e-5)
        assert found.completeness == pytest.approx(expected.completeness, rel=1e-3)


def test_memory_budget_changes_nothing() -> None:
    model = tiny_model("lfm2")
    (free,), (tight,) = from_cache(model, PROMPTS[:1]), from_cache(model, PROMPTS[:1], budget=200_000)
    assert_close(tight.scores, free.scores)
    with pytest.raises(PromptError, match="1000 bytes"):
        from_cache(model, PROMPTS[:1], budget=1000)


def test_auto_takes_the_cache_and_not_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("lfm2")
    monkeypatch.setattr(CaptumAttributor, "attribute", lambda *_: pytest.fail("Captum was asked"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotExactWarning)
        with make_attributor(model, AttributionSettings(definition="paper")) as attributor:
            (found,) = attributor.attribute(PROMPTS[:1], [None])
    assert_close(found.scores, naive.paper_scores(model, PROMPTS[0]))


def test_a_cache_that_goes_on_wrongly_is_noticed_and_captum_asked() -> None:
    model = tiny_model("lfm2")

    def shift(_module: Any, _arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        return output * 1.5 if output.shape[1] == 1 else output

    model.model.layers[1].feed_forward.register_forward_hook(shift, with_kwargs=True)
    with pytest.raises(NotExactError, match="logits from the cache"):
        from_cache(model, PROMPTS[:1])
    with make_attributor(model, AttributionSettings(definition="paper")) as attributor, pytest.warns(NotExactWarning):
        (found,) = attributor.attribute(PROMPTS[:1], [None])
    assert torch.isfinite(found.scores).all()
