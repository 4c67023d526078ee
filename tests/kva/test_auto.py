import warnings
from typing import Any

import pytest
import torch

from loki.errors import LokiError
from loki.kva import AttributionSettings, make_attributor
from loki.kva.attributor import NotExactError, NotExactWarning
from loki.kva.fast.engine import FastAttributor
from tests.kva import naive
from tests.tiny_models import HYBRID_FAMILIES, tiny_model
from tests.tolerances import assert_close

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [21, 22, 23]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", HYBRID_FAMILIES)
@pytest.mark.parametrize("first", [PROMPTS[0], [5]], ids=["prompt", "one token"])
def test_fast_engine_refuses_what_it_cannot_compute(family: str, dtype: torch.dtype, first: list[int]) -> None:
    with (
        make_attributor(tiny_model(family, dtype=dtype), AttributionSettings(engine="fast")) as attributor,
        pytest.raises(LokiError, match="not exact"),
    ):
        attributor.attribute([first], [None])


@pytest.mark.parametrize("family", HYBRID_FAMILIES)
def test_auto_goes_on_with_captum_and_says_so_once(family: str) -> None:
    model = tiny_model(family)
    with make_attributor(model, AttributionSettings(engine="auto")) as attributor:
        with pytest.warns(NotExactWarning, match="Captum"):
            found = attributor.attribute(PROMPTS, [None, None])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attributor.attribute(PROMPTS[:1], [None])
    for attribution, prompt in zip(found, PROMPTS, strict=True):
        assert_close(attribution.scores, naive.captum_scores(model, prompt))


def test_auto_turns_to_captum_for_single_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch gets does not depend on the batches before it."""
    model = tiny_model()
    fast = FastAttributor.attribute

    def refuse_long(self: FastAttributor, batch: Any, targets: Any) -> Any:
        if len(batch[0]) > 3:
            raise NotExactError("its prompt is long")
        return [*fast(self, batch, targets), "fast"]

    monkeypatch.setattr(FastAttributor, "attribute", refuse_long)
    with (
        make_attributor(model, AttributionSettings(engine="auto")) as attributor,
        pytest.warns(NotExactWarning, match=r"one of the batches \(its prompt is long\): .*Captum") as warned,
    ):
        results = [attributor.attribute([prompt], [None]) for prompt in (*PROMPTS, *PROMPTS)]
    assert [result[-1] == "fast" for result in results] == [False, True, False, True]
    assert len(warned) == 1


def test_auto_is_fast_and_silent_where_it_can_be() -> None:
    model = tiny_model()
    with warnings.catch_warnings(), make_attributor(model, AttributionSettings(engine="auto")) as attributor:
        warnings.simplefilter("error")
        (found,) = attributor.attribute(PROMPTS[:1], [None])
    assert_close(found.scores, naive.captum_scores(model, PROMPTS[0]))


@pytest.mark.parametrize("quantity", ["probability", "logit"])
@pytest.mark.parametrize("definition", ["captum", "paper"])
def test_engines_agree_in_all_they_report(definition: str, quantity: str) -> None:
    model = tiny_model("gemma3_text")
    results = []
    for engine in ("fast", "captum"):
        settings = AttributionSettings(definition=definition, engine=engine, quantity=quantity, position=-2)
        with make_attributor(model, settings) as attributor:
            results.append(attributor.attribute(PROMPTS, [None, 9]))
    for fast, captum in zip(*results, strict=True):
        assert_close(fast.scores, captum.scores)
        assert fast.target == captum.target
        assert fast.probability == pytest.approx(captum.probability, rel=1e-5)
        assert fast.completeness == pytest.approx(captum.completeness, rel=1e-3)


def test_two_engines_take_turns_on_one_model() -> None:
    model = tiny_model()
    fast, captum = (make_attributor(model, AttributionSettings(engine=engine)) for engine in ("fast", "captum"))
    with fast, captum:
        for prompt in PROMPTS:
            (found,), (expected,) = fast.attribute([prompt], [None]), captum.attribute([prompt], [None])
            assert_close(found.scores, expected.scores)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, "s_aux"),
        ("gpt_bigcode", {}, "batch .*grow"),
        ("bloom", {}, "attention implementation"),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, "MLP .*put out"),
    ],
)
def test_refusals_name_the_reason(family: str, changes: dict[str, int], reason: str) -> None:
    model = tiny_model(family, **changes)
    with (
        make_attributor(model, AttributionSettings(engine="fast")) as attributor,
        pytest.raises(LokiError, match=reason),
    ):
        attributor.attribute(PROMPTS, [None, None])
