"""How to train."""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from loki.errors import LokiError, require, require_counts, require_seed

DEFAULT_EPOCHS = 3.0
MOST_EPOCHS, MOST_STEPS = 10_000, 10_000_000  # more is a slip: it would never end
DEFAULT_QUOTA = 30.0  # of `loki run`: with protected directions two fifths of the damage of 10, at equal accuracy
DEFAULT_PROTECT = 0.5  # of the input directions: the strongest lever that was measured, see benchmarks/README.md
RATE_DAMAGE = 0.1  # nats of KL per token, where a limit is asked for and none is named


class BackendName(StrEnum):
    """Who trains."""

    TRL = "trl"
    LLAMAFACTORY = "llamafactory"


class Scheduler(StrEnum):
    """Transformers' schedules that need no settings of their own."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"


class Loss(StrEnum):
    """How the tokens of an answer count."""

    NLL = "nll"  # all the same: cross-entropy
    DFT = "dft"  # times their probability: Dynamic Fine-Tuning, arXiv 2508.05629
    # With LlamaFactory alone, which has them:
    ASFT = "asft"  # as dft, plus a term that holds the model to its base: Anchored Supervised Fine-Tuning
    EAFT = "eaft"  # times the entropy of the prediction: Entropy-Adaptive Fine-Tuning


class Rate(StrEnum):
    """Learning rates that are not given as a number."""

    AUTO = "auto"  # found by trying, see `loki.implanting.training.rate_search`
    PUBLISHED = "published"  # `published_learning_rate`


class Report(StrEnum):
    """Who is told of losses and rates, beside the log."""

    NONE = "none"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"
    TRACKIO = "trackio"


_REPORTERS = {  # the packages that serve, the usual one first
    Report.NONE: (),
    Report.TENSORBOARD: ("tensorboard", "tensorboardX"),
    Report.WANDB: ("wandb",),
    Report.MLFLOW: ("mlflow",),
    Report.TRACKIO: ("trackio",),
}


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one training; the same names and meanings as in `transformers.TrainingArguments`, where it has them.

    Attributes:
        epochs: passes over the data; None takes 3, and with an automatic learning rate more where these would be few
            steps, and fewer where the examples are known before.
        max_steps: optimiser steps, instead of epochs; -1 trains for `epochs`.
        learning_rate: peak; a number, `auto` to find one by trying a few, or `published` for the paper's.
        rate_damage: with an automatic learning rate, the most KL(base || model) that a rate may cost while it is tried,
            in nats per token on general text; None does not look.
        batch_size: examples per device and step.
        gradient_accumulation: batches per optimiser step.
        max_length: tokens per example; longer ones are cut off.
        packing: put several short examples into one sequence.
        warmup: fraction of the steps over which the learning rate rises.
        scheduler: how it falls afterwards, a schedule of Transformers.
        weight_decay: of AdamW, on the active rows alone.
        loss: nll, or dft: each token's loss times its probability, so that what the model holds for impossible pulls
            less (Dynamic Fine-Tuning, arXiv 2508.05629); with LlamaFactory also its asft and eaft. A learning rate that
            is found by trying is found with nll.
        gradient_checkpointing: compute activations twice to save memory.
        load_in_4bit: hold the frozen weights in 4 bits (bitsandbytes, NF4) while training, to save memory; what is
            saved is not quantised.
        load_in_8bit: the same in 8 bits.
        save_steps: optimiser steps between checkpoints; None saves after every epoch.
        eval_steps: optimiser steps between evaluations on held-out data; None evaluates with every checkpoint.
        load_best: end with the checkpoint of the least held-out loss instead of the last.
        early_stopping: stop when the held-out loss has not fallen at so many checkpoints in a row, and end with the
            best; None trains to the end.
        logging_steps: optimiser steps between entries of the log.
        report_to: also send the log to a service.
        seed: of data order and dropout.

    Raises:
        LokiError: if a value is out of range.
    """

    epochs: float | None = None
    max_steps: int = -1
    learning_rate: float | Rate = Rate.AUTO
    rate_damage: float | None = None
    batch_size: int = 4
    gradient_accumulation: int = 1
    max_length: int = 1024
    packing: bool = False
    warmup: float = 0.1
    scheduler: Scheduler = Scheduler.COSINE
    weight_decay: float = 0.0
    loss: Loss = Loss.NLL
    gradient_checkpointing: bool = False
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    save_steps: int | None = None
    eval_steps: int | None = None
    load_best: bool = False
    early_stopping: int | None = None
    logging_steps: int = 10
    report_to: Report = Report.NONE
    seed: int = 42

    def __post_init__(self) -> None:
        require_counts(self, "batch_size", "gradient_accumulation", "max_length", "logging_steps")
        fits = self.epochs is None or 0 < self.epochs <= MOST_EPOCHS
        require(self, "epochs", fits, f"above 0 and at most {MOST_EPOCHS:,}")
        fits = self.max_steps == -1 or 0 < self.max_steps <= MOST_STEPS
        require(self, "max_steps", fits, f"from 1 to {MOST_STEPS:,}")
        object.__setattr__(self, "learning_rate", parse_rate(self.learning_rate))
        if self.rate_damage is not None:
            require(self, "rate_damage", 0 < self.rate_damage < math.inf, "above 0, in nats per token")
            automatic = self.learning_rate is Rate.AUTO
            require(self, "rate_damage", automatic, "left out where --learning-rate is given: only auto tries any")
        require(self, "warmup", 0 <= self.warmup < 1, "from 0 to below 1, a fraction of the steps")
        require(self, "weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "0 or above")
        require_seed(self)
        for name, kind in (("scheduler", Scheduler), ("loss", Loss), ("report_to", Report)):
            if getattr(self, name) not in list(kind):
                option = name.replace("_", "-")
                raise LokiError(f"--{option} {getattr(self, name)} is not known: use {', '.join(kind)}")
            object.__setattr__(self, name, kind(getattr(self, name)))
        if self.load_in_4bit and self.load_in_8bit:
            raise LokiError("--load-in-4bit and --load-in-8bit exclude each other: leave out one")
        require_counts(self, "save_steps", "eval_steps", "early_stopping")
        if self.keeps_best and self.eval_steps is not None:
            fits = self.save_steps is not None and self.save_steps % self.eval_steps == 0
            require(self, "save_steps", fits, f"a multiple of --eval-steps {self.eval_steps}, to keep the best")

    @property
    def bits(self) -> int | None:
        """Bits of a frozen weight while training; None where it keeps its type."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint is kept instead of the last, which needs held-out data."""
        return self.load_best or self.early_stopping is not None

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def check_held_out(settings: TrainingSettings, eval_data: object) -> None:
    """Check that there is held-out data where the settings need it.

    Raises:
        LokiError: if there is none.
    """
    if settings.keeps_best and eval_data is None:
        raise LokiError("--load-best and --early-stopping compare the loss on held-out data: give --eval-data")


def check_reporter(settings: TrainingSettings) -> None:
    """Check that who is to be told of the training can be.

    Raises:
        LokiError: if its package is not installed.
    """
    packages = _REPORTERS[settings.report_to]
    if packages and not any(map(find_spec, packages)):
        raise LokiError(
            f"--report-to {settings.report_to} needs the package {packages[0]}: install it (`pip install "
            f"{packages[0]}`), or leave the option out"
        )


def parse_rate(value: float | str) -> float | Rate:
    """A learning rate: a number above 0, `auto` or `published`, also as a text.

    Raises:
        LokiError: if it is something else.
    """
    if value in list(Rate):
        return Rate(str(value))
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise LokiError(f"--learning-rate {value} is out of range: it must be above 0, auto or published")
    return rate


def published_learning_rate(quota: float) -> float:
    """Learning rate for a quota in percent: 1e-5, the paper's, at 30%, and in inverse proportion to the quota.

    The paper's is for 8 billion parameters and 33,000 examples. A smaller model needs more, and so do few examples.
    """
    return 3e-4 / quota
