"""Replay: general examples mixed into the training data, a few of which are known to go a long way.

Rehearsal is the oldest remedy against forgetting (Robins 1995); for language models about one percent of general
examples keeps most of what they would lose (Scialom et al. 2022, arXiv 2205.12393).
"""

import random
from dataclasses import dataclass

from datasets import Dataset, concatenate_datasets
from rich.console import Console

from loki.data.fitting import TrainingData
from loki.errors import LokiError


def check_fraction(fraction: float) -> float:
    """Check a share of replayed examples, and return it.

    Raises:
        LokiError: if it is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise LokiError(
            f"--replay-fraction {fraction} is out of range: it is the share of general examples among all, 0.01"
        )
    return fraction


@dataclass(frozen=True)
class Replay:
    """General examples, ready for a trainer.

    Attributes:
        general: what to draw from.
        fraction: share of the general examples among all that are trained on.
        seed: of the draw.
    """

    general: TrainingData
    fraction: float
    seed: int

    def added(self, examples: int) -> int:
        """How many general examples belong to so many new ones; at least one.

        Raises:
            LokiError: if there are fewer.
        """
        count = max(1, round(examples * self.fraction / (1 - self.fraction)))
        found = len(self.general.dataset)
        if count > found:
            raise LokiError(
                f"--replay has {found} examples, and --replay-fraction {self.fraction} of {examples} training examples "
                f"needs {count}: give more of them, or a smaller fraction"
            )
        return count

    def mixed(self, examples: Dataset, console: Console) -> Dataset:
        """The training examples and, after them, as many general ones as the fraction says, none twice.

        The trainer shuffles them. What is drawn depends on the seed and on the numbers of examples alone.

        Args:
            examples: columns `input_ids` and `completion_mask`, see `loki.data.fitting.TrainingData`.
            console: where to say how many are mixed in.
        """
        console.print(f"{self.added(len(examples))} general examples are mixed in", highlight=False)
        general = self.general.dataset
        drawn = sorted(random.Random(f"{self.seed}/replay").sample(range(len(general)), self.added(len(examples))))
        return concatenate_datasets([examples, general.select(drawn)])
