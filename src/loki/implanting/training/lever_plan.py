"""Levers whose text was read, ready for a trainer in this process or another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel, TrainerCallback

from loki.errors import LokiError
from loki.implanting.base_rows import remember_base
from loki.implanting.sharding import under_fsdp
from loki.implanting.training.base_predictions import base_predictions
from loki.implanting.training.damage import DamageBudget
from loki.implanting.training.keep import KeepTerm


@dataclass(frozen=True)
class LeverPlan:
    """What the levers on the loss and on the damage come down to; JSON values, see `Levers` for what they mean.

    Attributes:
        keeps: whether there is anything to keep.
        windows: token ids of the general text; None takes the prompts of the new task.
        weight: factor of the term.
        per_step: windows per batch.
        top: likeliest tokens kept of the base's predictions; None asks the base at every step.
        fingerprint: of the model's weights, where `top` is given.
        max_damage: nats of KL(base || model) per token; None sets no limit.
        damage_every: optimiser steps between two looks at the damage.
        damage_windows: windows that it is looked at on.
    """

    keeps: bool
    windows: list[list[int]] | None
    weight: float
    per_step: int
    top: int | None
    fingerprint: str
    max_damage: float | None
    damage_every: int
    damage_windows: int

    def prepare(
        self, model: PreTrainedModel, console: Console, accuracy: Callable[[Any], float] | None = None
    ) -> "PreparedLevers":
        """Remember the base's rows; before the rows are trained or a checkpoint is loaded.

        Args:
            model: to be trained.
            console: where the damage is said.
            accuracy: see `DamageBudget`.

        Raises:
            LokiError: if `top` is out of range, or given under FSDP.
        """
        if not self.keeps:
            return PreparedLevers(None, None)
        remember_base(model)
        predictions = budget = None
        if self.windows is not None and self.top is not None and self.weight > 0:
            if under_fsdp():
                raise LokiError(
                    "--keep-top-k asks the base before training, which no process holds whole under FSDP: leave it out"
                )
            predictions = base_predictions(model, self.windows, self.top, self.fingerprint)
        if self.max_damage is not None:
            assert self.windows is not None
            spread = self.windows[:: max(1, len(self.windows) // self.damage_windows)][: self.damage_windows]
            budget = DamageBudget(spread, self.max_damage, self.damage_every, console, accuracy)
        return PreparedLevers(KeepTerm(self.windows, self.weight, self.per_step, predictions), budget)


@dataclass(frozen=True)
class PreparedLevers:
    """Levers, ready for a trainer.

    Attributes:
        term: what is added to the loss, if anything.
        budget: what watches over the damage, if anything.
    """

    term: KeepTerm | None
    budget: DamageBudget | None

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """Callbacks for the trainer, after that of the selected rows."""
        return [] if self.budget is None else [self.budget]

    @property
    def nothing_trained(self) -> bool:
        """Whether the budget allowed no step at all."""
        return self.budget is not None and self.budget.left and self.budget.final_damage == 0
