"""Settings are checked when they are made."""

import pytest

from loki.errors import LokiError
from loki.implanting.training.settings import TrainingSettings, default_learning_rate


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0.0),
        ("epochs", float("nan")),
        ("batch_size", 0),
        ("max_steps", 0),
        ("learning_rate", -1e-5),
        ("learning_rate", float("inf")),
        ("warmup", 1.0),
        ("weight_decay", -0.1),
        ("save_steps", 0),
        ("max_length", 0),
    ],
)
def test_out_of_range(name: str, value: float) -> None:
    with pytest.raises(LokiError, match=f"--{name.replace('_', '-')} {value}"):
        TrainingSettings(**{name: value})


def test_learning_rate_falls_with_the_quota() -> None:
    assert default_learning_rate(30) == pytest.approx(1e-5)
    assert default_learning_rate(10) > default_learning_rate(20) > default_learning_rate(30)
