import torch

from loki.kva.auto import make_attributor
from loki.kva.settings import AttributionSettings
from tests.tiny_models import tiny_model

SHORT, LONG = [9, 10, 11], [9] * 40


def test_scores_do_not_depend_on_what_was_computed_before_to_the_last_bit() -> None:
    model = tiny_model()
    with make_attributor(model, AttributionSettings(engine="fast")) as fresh:
        (expected,) = fresh.attribute([SHORT], [None])
    for before in (LONG, SHORT[:2]):
        with make_attributor(model, AttributionSettings(engine="fast")) as used:
            used.attribute([before], [None])
            (attribution,) = used.attribute([SHORT], [None])
        assert torch.equal(attribution.scores, expected.scores)
