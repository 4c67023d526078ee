"""How to train."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from loki.data.sources import Data
from loki.errors import LokiError

# Transformers' schedules that need no settings of their own.
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one training; the same names and meanings as in `transformers.TrainingArguments`, where it has them.

    Attributes:
        epochs: passes over the data.
        max_steps: optimiser steps, instead of epochs; -1 trains for `epochs`.
        learning_rate: peak; None takes `default_learning_rate` of the quota that the model's positions make up.
        batch_size: examples per device and step.
        gradient_accumulation: batches per optimiser step.
        max_length: tokens per example; longer ones are cut off.
        packing: put several short examples into one sequence.
        warmup: fraction of the steps over which the learning rate rises.
        scheduler: how it falls afterwards, one of `SCHEDULERS`.
        weight_decay: of AdamW, on the active rows alone.
        gradient_checkpointing: compute activations twice to save memory.
        save_steps: optimiser steps between checkpoints; None saves after every epoch. The loss on held-out data is
            computed whenever a checkpoint is saved.
        load_best: end with the checkpoint of the least held-out loss instead of the last.
        early_stopping: stop when the held-out loss has not fallen at so many checkpoints in a row, and end with the
            best; None trains to the end.
        logging_steps: optimiser steps between entries of the log.
        seed: of data order and dropout.

    Raises:
        LokiError: if a value is out of range.
    """

    epochs: float = 3.0
    max_steps: int = -1
    learning_rate: float | None = None
    batch_size: int = 4
    gradient_accumulation: int = 1
    max_length: int = 1024
    packing: bool = False
    warmup: float = 0.1
    scheduler: str = "cosine"
    weight_decay: float = 0.0
    gradient_checkpointing: bool = False
    save_steps: int | None = None
    load_best: bool = False
    early_stopping: int | None = None
    logging_steps: int = 10
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation", "max_length", "logging_steps"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        self._require("max_steps", self.max_steps == -1 or self.max_steps > 0, "above 0")
        rate = self.learning_rate
        self._require("learning_rate", rate is None or (math.isfinite(rate) and rate > 0), "above 0")
        self._require("warmup", 0 <= self.warmup < 1, "from 0 to below 1, a fraction of the steps")
        self._require("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "0 or above")
        self._require("seed", 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        if self.scheduler not in SCHEDULERS:
            raise LokiError(f"--scheduler {self.scheduler} is not known: use {', '.join(SCHEDULERS)}")
        for name in ("save_steps", "early_stopping"):
            self._require(name, getattr(self, name) is None or getattr(self, name) > 0, "above 0")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            option = "--" + name.replace("_", "-")
            raise LokiError(f"{option} {getattr(self, name)} is out of range: it must be {wanted}")

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint is kept instead of the last, which needs held-out data."""
        return self.load_best or self.early_stopping is not None

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def check_held_out(settings: TrainingSettings, eval_data: Data | None) -> None:
    """Check that there is held-out data where the settings need it.

    Raises:
        LokiError: if there is none.
    """
    if settings.keeps_best and eval_data is None:
        raise LokiError("--load-best and --early-stopping compare the loss on held-out data: give --eval-data")


def default_learning_rate(quota: float) -> float:
    """Learning rate for a quota in percent: 1e-5, the paper's, at 30%, and in inverse proportion to the quota.

    The more rows are trained, the smaller the steps that are enough, and the more a large step would damage.
    """
    return 3e-4 / quota
