"""Settings are checked when they are made."""

import pytest

from loki.artefacts.training_settings import Rate, TrainingSettings, published_learning_rate
from loki.errors import LokiError


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
        ("learning_rate", "fast"),
        ("eval_steps", 0),
    ],
)
def test_out_of_range(name: str, value: float) -> None:
    with pytest.raises(LokiError, match=f"--{name.replace('_', '-')} {value}"):
        TrainingSettings(**{name: value})


def test_learning_rate_falls_with_the_quota() -> None:
    assert published_learning_rate(30) == pytest.approx(1e-5)
    assert published_learning_rate(10) > published_learning_rate(20) > published_learning_rate(30)


def test_rates_are_numbers_or_words() -> None:
    assert TrainingSettings().learning_rate is Rate.AUTO
    assert TrainingSettings(learning_rate="1e-3").learning_rate == 1e-3  # type: ignore[arg-type]
    assert TrainingSettings(learning_rate="published").learning_rate is Rate.PUBLISHED  # type: ignore[arg-type]


def test_the_best_can_be_kept_only_where_it_was_evaluated() -> None:
    with pytest.raises(LokiError, match=r"--save-steps None .*--eval-steps 4"):
        TrainingSettings(load_best=True, eval_steps=4)
    with pytest.raises(LokiError, match=r"--save-steps 6 .*--eval-steps 4"):
        TrainingSettings(load_best=True, eval_steps=4, save_steps=6)
    TrainingSettings(load_best=True, eval_steps=4, save_steps=8)


@pytest.mark.parametrize("name", ["scheduler", "report_to"])
def test_unknown_choices(name: str) -> None:
    with pytest.raises(LokiError, match=f"--{name.replace('_', '-')} steep"):
        TrainingSettings(**{name: "steep"})  # type: ignore[arg-type]
