"""What came of one way of learning the new facts."""

from dataclasses import dataclass

from loki.demo.world import NEW_PEOPLE, OLD_FAMILIES
from loki.evaluation.forgetting import forgetting_percent


@dataclass(frozen=True)
class Outcome:
    """Accuracy before and after learning the new facts, and the cost.

    Attributes:
        method: what was trained.
        learning_rate: the peak learning rate.
        seed: of the order of the batches and of what the method draws at random.
        steps: optimiser steps until the new facts were known.
        trainable_parameters: how many parameters were trained.
        before: accuracy by family, old families and new facts, before.
        after: the same afterwards.
    """

    method: str
    learning_rate: float
    seed: int
    steps: int
    trainable_parameters: int
    before: dict[str, float]
    after: dict[str, float]

    @property
    def forgetting(self) -> float:
        """Mean relative drop of the old families' accuracy, in percent."""
        return forgetting_percent(
            {family: self.before[family] for family in OLD_FAMILIES},
            {family: self.after[family] for family in OLD_FAMILIES},
        )

    @property
    def new_accuracy(self) -> float:
        """Accuracy on the new facts afterwards."""
        return self.after[NEW_PEOPLE]
