"""Trying a learning rate: a model's rows are trained with it for some steps, and put back.

What is tried are the rows on the training data, with the trainer's optimiser and clipping.
"""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from loki.artefacts.training_settings import TrainingSettings
from loki.implanting.splitting import active_parameters, exact_rows
from loki.implanting.training.damage import damage_since
from loki.implanting.training.encoded import Encoded, collate, sample, trained_predictions
from loki.implanting.training.learned import measure

_WARMUP_STEPS = 3
_MEASURED = {"most": 48, "tokens": 8_192}


@dataclass(frozen=True)
class Trial:
    """One rate after some steps.

    Attributes:
        learning_rate: constant after a short warm-up.
        steps: optimiser steps taken.
        loss: on the examples that it was trained on; infinite where it is NaN.
        held_out_loss: on examples that it was not, None where there are none.
        damage: KL(base || model) in nats per token on general text; None where it was not looked at.
    """

    learning_rate: float
    steps: int
    loss: float
    held_out_loss: float | None
    damage: float | None = None


@dataclass
class _State:
    """Rows and optimiser of one rate, set aside while another is tried."""

    rows: dict[str, torch.Tensor]
    optimizer: dict[str, Any] = field(default_factory=dict)
    steps: int = 0


class Tryout:
    """Trains the rows of a model with several rates in turn, each from where it stopped."""

    def __init__(
        self,
        model: PreTrainedModel,
        examples: Sequence[Encoded],
        held_out: Sequence[Encoded] | None,
        settings: TrainingSettings,
        general: list[list[int]] | None = None,
    ) -> None:
        self._model, self._examples, self._settings, self._general = model, examples, settings, general
        self._rows = active_parameters(model)
        for parameter in self._rows.values():
            parameter.data = parameter.data.to(torch.float32)
        self._before = self._copied()
        self._base = {name: tensor.clone() for name, tensor in exact_rows(model).items()} if general else {}
        self._states: dict[float, _State] = {}
        self._seen = sample(examples, **_MEASURED)
        self._held_out = sample(held_out, **_MEASURED) if held_out else None

    def attempt(self, rate: float, steps: int) -> Trial:
        """Train with `rate` until `steps` steps were taken in all; `restore` ends it."""
        state = self._states.setdefault(rate, _State(self._before))
        self._put(state.rows)
        optimizer = torch.optim.AdamW(self._rows.values(), lr=rate, weight_decay=self._settings.weight_decay)
        if state.optimizer:
            optimizer.load_state_dict(state.optimizer)
        was_training = self._model.training
        self._model.train()
        try:
            for step, batch in enumerate(self._batches(steps)):
                if step >= state.steps and not self._step(optimizer, batch, rate * min(1, (step + 1) / _WARMUP_STEPS)):
                    nothing = None if self._held_out is None else math.inf
                    return Trial(rate, steps, math.inf, nothing, math.inf if self._general else None)
        finally:
            self._model.train(was_training)
        self._states[rate] = _State(self._copied(), optimizer.state_dict(), steps)
        loss, held_out = self.losses()
        damage = damage_since(self._model, self._base, self._general) if self._general else None
        return Trial(rate, steps, loss if math.isfinite(loss) else math.inf, held_out, damage)

    def seconds_per_step(self, steps: int) -> float:
        """The mean time of `steps` steps at rate 0, after a first one, which takes longer."""
        optimizer = torch.optim.AdamW(self._rows.values(), lr=0.0, weight_decay=self._settings.weight_decay)
        was_training = self._model.training
        self._model.train()
        try:
            batches = self._batches(1 + steps)
            self._step(optimizer, next(batches), 0.0)
            started = time.monotonic()
            for batch in batches:
                self._step(optimizer, batch, 0.0)
            return (time.monotonic() - started) / steps
        finally:
            self._model.train(was_training)

    def losses(self) -> tuple[float, float | None]:
        """The loss on examples trained on and, where there are any, on held-out ones."""
        held_out = measure(self._model, self._held_out).loss if self._held_out else None
        return measure(self._model, self._seen).loss, held_out

    def restore(self) -> None:
        """Put the rows back as they were."""
        self._put(self._before)
        for parameter in self._rows.values():
            parameter.grad = None

    def _step(self, optimizer: torch.optim.Optimizer, examples: Sequence[Encoded], rate: float) -> bool:
        """One optimiser step; False where the loss is NaN or infinite."""
        device = self._model.device
        batch = collate(examples, device)
        wide = device.type == "cuda" and self._model.dtype == torch.float32 and torch.cuda.is_bf16_supported()
        with torch.autocast(device.type, torch.bfloat16, enabled=wide):
            logits, wanted, _ = trained_predictions(self._model, batch)
            loss = cross_entropy(logits.float(), wanted)
        if not torch.isfinite(loss):
            return False
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(list(self._rows.values()), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        return True

    def _batches(self, steps: int) -> Iterator[list[Encoded]]:
        """The same batches for every rate: all examples in an order by chance, again and again."""
        chance = random.Random(self._settings.seed)
        size = min(len(self._examples), self._settings.batch_size * self._settings.gradient_accumulation)
        queue: list[Encoded] = []
        for _ in range(steps):
            while len(queue) < size:
                queue += chance.sample(list(self._examples), len(self._examples))
            yield queue[:size]
            queue = queue[size:]

    def _copied(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self._rows.items()}

    def _put(self, rows: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._rows.items():
                parameter.copy_(rows[name])


def seconds_per_step(
    model: PreTrainedModel, examples: Sequence[Encoded], settings: TrainingSettings, *, steps: int = 3
) -> float:
    """The time of an optimiser step, measured on a few; the rows are as before."""
    tried = Tryout(model, examples, None, settings)
    try:
        return tried.seconds_per_step(steps)
    finally:
        tried.restore()
