import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from loki.demo.build import WEIGHTS
from loki.demo.stopping import StopWhenKnown
from loki.demo.world import tiny_world
from loki.metrics.accuracy import Question
from loki.models.loading import load_model, load_tokenizer


@pytest.mark.parametrize(("accuracy", "stops"), [(0.4, True), (0.5, True), (0.6, False)])
def test_stops_once_enough_is_known(accuracy: float, stops: bool) -> None:
    model, tokenizer = load_model(WEIGHTS), load_tokenizer(WEIGHTS)
    known = tiny_world().asked["people"][:5]
    unknown = [Question(fact.family, fact.prompt, "unheard of") for fact in known]
    callback = StopWhenKnown(tokenizer, [*known, *unknown], accuracy)
    control = callback.on_epoch_end(TrainingArguments(), TrainerState(), TrainerControl(), model=model)
    assert control.should_training_stop is stops
