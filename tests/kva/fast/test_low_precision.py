import random

import pytest
import torch

from loki.demo.build import WEIGHTS
from loki.demo.world import tiny_world
from loki.kva import AttributionSettings, make_attributor
from loki.models.loading import load_model, load_tokenizer
from loki.selection.overlap import overlap
from loki.selection.select import make_counter
from loki.selection.strategies import SelectionSettings
from tests.kva.attributing import PROMPT, attribute
from tests.tiny_models import tiny_model

OTHERS = [[21, 22, 23], [41, 42, 43, 44, 45, 46, 47, 48]]


def test_bfloat16_keeps_the_ranks() -> None:
    exact = attribute(tiny_model(hidden_size=64, seed=3), [PROMPT, *OTHERS])
    rounded = attribute(tiny_model(hidden_size=64, seed=3).bfloat16(), [PROMPT, *OTHERS], [a.target for a in exact])
    for low, high in zip(rounded, exact, strict=True):
        assert low.scores.dtype == torch.float32
        ranks = [scores.argsort(dim=-1).argsort(dim=-1).float() for scores in (low.scores, high.scores)]
        spearman = [float(torch.corrcoef(torch.stack(rows))[0, 1]) for rows in zip(*ranks, strict=True)]
        assert min(spearman) > 0.95, spearman


def test_sixteen_bit_floats_do_not_underflow() -> None:
    model = tiny_model(seed=1)
    least = int(model(input_ids=torch.tensor([PROMPT])).logits[0, -1].argmin())
    (found,) = attribute(model.half(), [PROMPT], [least])
    assert float((found.scores == 0).float().mean()) < 0.01


@pytest.mark.slow
def test_bfloat16_selects_what_float32_selects_on_the_tiny_world(record_property) -> None:
    """One row is 2% of a 10% selection of this model; rounding the weights alone already moves some."""
    tokenizer, world = load_tokenizer(WEIGHTS), tiny_world()
    prompts = [tokenizer(question.prompt)["input_ids"] for question in random.Random(1).sample(world.old, 1000)]
    targets: list[int | None] = [None] * len(prompts)
    scores = []
    for dtype in ("float32", "bfloat16"):
        with make_attributor(load_model(WEIGHTS, dtype=dtype), AttributionSettings(engine="fast")) as attributor:
            found = [
                attribution
                for start in range(0, len(prompts), 50)
                for attribution in attributor.attribute(prompts[start : start + 50], targets[start : start + 50])
            ]
        targets = [attribution.target for attribution in found]
        scores.append(torch.stack([attribution.scores for attribution in found]).numpy())
    overlaps = []
    for quota in (10, 20, 30):
        selections = []
        for kind in scores:
            counter = make_counter(SelectionSettings(), quota, *kind.shape[1:])
            counter.update(kind)
            selections.append(counter.positions())
        overlaps.append(overlap(*selections))
    record_property("overlaps", overlaps)
    assert sum(overlaps) / len(overlaps) >= 0.95, overlaps
