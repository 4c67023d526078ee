import pytest

from loki.errors import LokiError
from loki.kva.settings import AttributionSettings


def test_rule_follows_the_definition() -> None:
    assert AttributionSettings().ig_method == "riemann_trapezoid"
    assert AttributionSettings(definition="paper").ig_method == "riemann_left"
    assert AttributionSettings(definition="paper", ig_method="gausslegendre").ig_method == "gausslegendre"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"definition": "shapley"}, "definition is 'shapley': .*captum, paper"),
        ({"ig_method": "simpson"}, "ig_method is 'simpson'"),
        ({"engine": "slow"}, "engine is 'slow'"),
        ({"quantity": "loss"}, "quantity is 'loss'"),
        ({"steps": 1}, "riemann_trapezoid .*at least 2"),
        ({"steps": 0, "ig_method": "gausslegendre"}, "needs at least 1"),
    ],
)
def test_bad_settings_are_refused(changes, message: str) -> None:
    with pytest.raises(LokiError, match=message):
        AttributionSettings(**changes)
