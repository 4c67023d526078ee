"""A budget of damage: training stops when the model has moved too far from its base, and goes back a little."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki.errors import LokiError
from loki.implanting.base_rows import base_rows
from loki.implanting.splitting import exact_rows, loki_linears, put_rows
from loki.metrics.divergence import kl_of_logits
from loki.metrics.modes import evaluating


@torch.no_grad()
def damage(model: nn.Module, windows: list[list[int]]) -> float:
    """Mean KL(base || model) in nats per token over windows of text, one at a time.

    Args:
        model: a LoKI model whose base was remembered, or one with PEFT adapters.
        windows: token ids.
    """
    total, tokens = 0.0, sum(map(len, windows))
    device = next(model.parameters()).device
    with evaluating(model):
        for window in windows:
            ids = torch.tensor([window], device=device)
            with base_rows(model):
                before = model(input_ids=ids, use_cache=False).logits
            after = model(input_ids=ids, use_cache=False).logits
            total += len(window) * float(kl_of_logits(before, after, torch.ones_like(ids, dtype=torch.bool)))
    return total / tokens


def damage_since(model: nn.Module, base: Mapping[str, torch.Tensor], windows: list[list[int]]) -> float:
    """The same for a LoKI model whose base was not remembered.

    Args:
        model: a LoKI model.
        base: its rows before training (`exact_rows`).
        windows: token ids.
    """
    trained = {name: tensor.clone() for name, tensor in exact_rows(model).items()}
    put_rows(model, base)
    for linear in loki_linears(model).values():
        linear.remember_base()
    put_rows(model, trained)
    return damage(model, windows)


_SAME = 1 + 1e-4  # the same rows measured again, where a GPU adds up in another order


class DamageBudget(TrainerCallback):  # type: ignore[misc]
    """Stops a training that leaves its budget, with the rows of the last look at which it was inside.

    In any Hugging Face trainer, of a LoKI model whose base was remembered or of an adapter.

    Args:
        windows: token ids of the text that damage is looked at on.
        budget: nats of KL(base || model) per token; 0 trains nothing.
        every: optimiser steps between two looks. It is also looked at before a checkpoint is saved and at the end, when
            the best checkpoint was loaded where the trainer does so.
        console: where to say what was found.
        accuracy: the part of the examples that a model gets right, to say what going back has cost; None says nothing.

    Attributes:
        inside_step: last step at which the model was inside the budget.
        inside_damage: damage then.
        final_damage: damage of the rows that training ends with.
        left: whether the budget was left.

    Raises:
        LokiError: if the budget is negative or no number.
    """

    def __init__(
        self,
        windows: list[list[int]],
        budget: float,
        every: int,
        console: Console,
        accuracy: Callable[[Any], float] | None = None,
    ) -> None:
        check_budget(budget)
        self._windows = windows
        self._budget = budget
        self._every = every
        self._console = console
        self._accuracy = accuracy
        self._inside: dict[str, torch.Tensor] = {}
        self.inside_step = 0
        self.inside_damage = 0.0
        self.final_damage = 0.0
        self.left = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where training starts counts as inside.

        Raises:
            LokiError: if it goes on from a checkpoint that is not.
        """
        del args, control
        model, step = kwargs["model"], state.global_step
        found = damage(model, self._windows) if step else 0.0
        if found > self._budget * _SAME:
            raise LokiError(
                f"training would go on from step {step}, whose damage of {found:.4g} nats per token is above the "
                f"budget {self._budget:g}: go on from an earlier checkpoint, or start anew"
            )
        self._note(model, step, found)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look, and go back where the budget was left."""
        del args
        if state.global_step % self._every == 0 or control.should_save or control.should_training_stop:
            self._look(kwargs["model"], state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look before a checkpoint is saved."""
        del args
        if control.should_save or control.should_training_stop:
            self._look(kwargs["model"], state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at what training ends with, which may be a checkpoint that the trainer took for the best."""
        del args
        self._look(kwargs["model"], state, control)

    @torch.no_grad()
    def _look(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> None:
        self.final_damage = found = damage(model, self._windows)
        if found <= self._budget:
            if not self.left:
                self._note(model, state.global_step, found)
            return
        known = self._accuracy and self._accuracy(model)
        for name, tensor in _trained(model).items():
            tensor.copy_(self._inside[name])
        self.left = control.should_training_stop = True
        self.final_damage = self.inside_damage
        cost = f": {self._accuracy(model):.1%} of the examples right, not {known:.1%}" if self._accuracy else ""
        self._console.print(
            f"damage {found:.4g} nats per token at step {state.global_step} is above the budget {self._budget:g}: "
            f"stopped, with the rows of step {self.inside_step} ({self.inside_damage:.4g}){cost}",
            soft_wrap=True,
        )

    def _note(self, model: nn.Module, step: int, found: float) -> None:
        self._inside = {name: tensor.clone() for name, tensor in _trained(model).items()}
        self.inside_step, self.inside_damage, self.final_damage = step, found, found


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: the rows of a LoKI model, or the trainable parameters of an adapter."""
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return exact_rows(model) or dict(parameters)


def check_budget(budget: float) -> None:
    """Check a budget of damage.

    Raises:
        LokiError: if it is negative or no number.
    """
    if not 0 <= budget < math.inf:
        raise LokiError(f"--max-damage {budget} is out of range: it must be 0 or above, in nats per token")
