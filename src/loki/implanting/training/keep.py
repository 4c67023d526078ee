"""Keeping what a model knows while it learns: a term KL(base || model) on general text, or on the new task's prompts.

The Kullback-Leibler divergence between the model before and after training, per token, is what forgetting is measured
by; on the new task's prompts it predicts forgetting elsewhere (RL's Razor, arXiv 2509.04259). The base's distribution
comes from the same weights with the rows' change switched off, so no second model is in memory; or from the disk, see
`loki.implanting.training.base_predictions`.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import nn

from loki.errors import LokiError
from loki.implanting.base_rows import base_rows
from loki.implanting.training.base_predictions import BasePredictions
from loki.metrics.divergence import kl_of_logits

NEW = "new"


class KeepTerm:
    """The term that a training step adds to its loss.

    Args:
        windows: token ids of general texts, each of at least two tokens; None takes the prompts of the step's batch.
        weight: factor of the term.
        per_step: windows per step, taken in turn.
        predictions: of the base on the windows; None asks it at every step.

    Raises:
        LokiError: if the weight is negative or there is no window.
    """

    def __init__(
        self,
        windows: list[list[int]] | None,
        weight: float,
        per_step: int,
        predictions: BasePredictions | None = None,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise LokiError(f"--keep-weight {weight} is out of range: it must be 0 or above")
        if windows is not None and not windows:
            raise LokiError("--keep has no text to keep: give some")
        self._windows = windows
        self._weight = weight
        self._per_step = per_step
        self._predictions = predictions
        self._starts = [0, *accumulate(map(len, windows or []))]  # of the windows, among the predictions

    def batch(self, step: int, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids `[B, T]` of one step, and which of their predictions count.

        Args:
            step: number of the batch since training began, over all processes.
            inputs: the step's own batch.
        """
        if self._windows is None:
            ids = inputs["input_ids"]
            of_prompts = inputs["labels"] == -100
            if "attention_mask" in inputs:
                of_prompts &= inputs["attention_mask"].bool()
            # A position predicts the next token; what predicts the first of an answer is what training is to change.
            return ids, of_prompts & torch.nn.functional.pad(of_prompts[:, 1:], (0, 1))
        chosen = [self._windows[index] for index in self._chosen(step, len(self._windows))]
        length = max(map(len, chosen))
        ids = torch.tensor([window + [0] * (length - len(window)) for window in chosen])
        counted = torch.arange(length) < torch.tensor([[len(window)] for window in chosen])
        return ids, counted

    def _chosen(self, step: int, windows: int) -> list[int]:
        start = step * self._per_step
        return [index % windows for index in range(start, start + self._per_step)]

    @property
    def active(self) -> bool:
        """Whether there is anything to add."""
        return self._weight > 0

    @torch.no_grad()
    def base(self, model: nn.Module, step: int, ids: torch.Tensor) -> torch.Tensor | BasePredictions:
        """Logits of the base, `[B, T, V]`, or what was kept; before the step's own forward pass, see `base_rows`.

        Args:
            model: the model that is trained.
            step: see `batch`.
            ids: of that batch.
        """
        if self._predictions is not None:
            starts = [self._starts[index : index + 2] for index in self._chosen(step, len(self._starts) - 1)]
            return self._predictions.at(torch.cat([torch.arange(*bounds) for bounds in starts]))
        with base_rows(model):
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return logits

    def loss(
        self, model: nn.Module, ids: torch.Tensor, counted: torch.Tensor, base: torch.Tensor | BasePredictions
    ) -> torch.Tensor:
        """The weighted term."""
        logits = model(input_ids=ids, use_cache=False).logits
        counted = counted.to(logits.device)
        if isinstance(base, BasePredictions):
            return self._weight * base.divergence(logits[counted])
        return self._weight * kl_of_logits(base, logits, counted)


class AddsKeepTerm:
    """A Hugging Face trainer with a `KeepTerm` in every training step: a base class to name before the trainer's own.

    Without a term, or with weight 0, the trainer's own steps to the last bit.

    Attributes:
        keep_term: what is added; None adds nothing.
    """

    keep_term: KeepTerm | None = None
    _batches = -1  # taken before

    def compute_loss(
        self: Any,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As the trainer's, plus the term."""
        given = (model, inputs, return_outputs, num_items_in_batch)
        if self.keep_term is None or not self.keep_term.active or not model.training:
            return super().compute_loss(*given)  # type: ignore[misc]
        # A resumed training goes on in the texts where it stopped.
        done = self.state.global_step * self.args.gradient_accumulation_steps
        self._batches = max(self._batches + 1, done)
        plain = self.accelerator.unwrap_model(model)
        number = self._batches * self.accelerator.num_processes + self.accelerator.process_index
        ids, counted = self.keep_term.batch(number, inputs)
        ids = ids.to(self.args.device)
        with self.compute_loss_context_manager():
            base = self.keep_term.base(plain, number, ids)
        found = super().compute_loss(*given)  # type: ignore[misc]
        term = self.keep_term.loss(plain, ids, counted, base)
        if num_items_in_batch is not None:  # else the trainer divides
            term = term / self.args.gradient_accumulation_steps
        if return_outputs:
            return found[0] + term, found[1]
        return found + term
