"""Stops training once the new facts are known."""

from collections.abc import Sequence
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from loki.metrics.accuracy import Question, answers_right


class StopWhenKnown(TrainerCallback):  # type: ignore[misc]
    """Ends training after the first epoch at which enough of the facts are answered right.

    Args:
        tokenizer: the model's tokenizer.
        facts: what must be known.
        accuracy: the fraction of `facts` that is enough.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Question], accuracy: float) -> None:
        self.tokenizer = tokenizer
        self.facts = facts
        self.accuracy = accuracy

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for the facts, and stop training when enough are known."""
        del args, state
        model: PreTrainedModel = kwargs["model"]
        right = answers_right(model, self.tokenizer, self.facts)
        control.should_training_stop |= sum(right) >= self.accuracy * len(right)
        return control
