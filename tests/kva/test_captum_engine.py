import pytest

from loki.kva import AttributionSettings
from loki.kva.captum_engine import CaptumAttributor
from tests.kva import naive
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close

PROMPT = [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "bamba"])
def test_reference_is_captum_as_published(family: str) -> None:
    model = tiny_model(family)
    with CaptumAttributor(model, AttributionSettings(steps=4)) as attributor:
        (found,) = attributor.attribute([PROMPT], [None])
    assert_close(found.scores, naive.captum_scores(model, PROMPT, steps=4))


@pytest.mark.parametrize("family", ["llama", "gemma2", "bamba"])
def test_reference_of_the_paper_definition(family: str) -> None:
    model = tiny_model(family)
    with CaptumAttributor(model, AttributionSettings(definition="paper")) as attributor:
        (found,) = attributor.attribute([PROMPT], [3])
    assert_close(found.scores, naive.paper_scores(model, PROMPT, 3))
