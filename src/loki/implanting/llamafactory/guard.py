"""Stopping a training in which the trainable parameters are not exactly the selected rows."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki.errors import LokiError
from loki.implanting.peft.layer import RowAdapter
from loki.implanting.splitting import active_parameters, check_trainable, loki_linears
from loki.implanting.training.rows import ROWS_FILE, SelectedRows, check_logged


class SelectedRowsGuard(TrainerCallback):  # type: ignore[misc]
    """Watches over a LoKI model or adapter while any Hugging Face trainer trains it; leaves other models alone.

    At the beginning of training it checks what is trainable. A LoKI model's rows in float32 are then saved and resumed
    as `SelectedRows` says. Not where DeepSpeed or FSDP hold them, and not where the user wants them in another type
    (`pure_bf16`): the optimiser's state, which is loaded before, would not fit.

    Args:
        problem: why selected rows cannot be trained here, if they cannot.
    """

    def __init__(self, problem: str | None = None) -> None:
        self._problem = problem
        self._rows: SelectedRows | None = None
        self._watching = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check what is trained.

        Raises:
            LokiError: if it is not exactly the selected rows, or they cannot be trained here.
        """
        model = kwargs["model"]
        self._watching = check_selected_rows(model)
        if self._watching and self._problem:
            raise LokiError(self._problem)
        dtypes = {parameter.dtype for parameter in active_parameters(model).values()}
        if dtypes == {torch.float32} and not args.deepspeed and not args.fsdp:
            resumed = args.resume_from_checkpoint
            exact = isinstance(resumed, str) and (Path(resumed) / ROWS_FILE).is_file()
            self._rows = SelectedRows(model, Path(resumed) if exact else None)
            self._rows.on_train_begin(args, state, control, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save a LoKI model's rows exactly."""
        if self._rows is not None:
            self._rows.on_save(args, state, control, **kwargs)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before a step along a gradient that is no number.

        Raises:
            LokiError: if it is NaN or infinite.
        """
        if self._rows is not None:
            self._rows.on_pre_optimizer_step(args, state, control, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop at a loss that is no number.

        Raises:
            LokiError: if it is NaN or infinite.
        """
        del args, control
        if self._watching:
            check_logged(kwargs.get("logs") or {}, state.global_step)


def check_selected_rows(model: nn.Module) -> bool:
    """Check that exactly the selected rows of a LoKI model or of a LoKI adapter are trainable.

    Returns:
        Whether the model is one of these; any other passes.

    Raises:
        LokiError: if anything else is trainable, or a selected row is not.
    """
    if loki_linears(model):
        check_trainable(model)
        return True
    adapters = {name: module for name, module in model.named_modules() if isinstance(module, RowAdapter)}
    if not adapters:
        return False
    rows = {id(parameter) for adapter in adapters.values() for parameter in _active(adapter)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (id(parameter) in rows):
            state = "is trainable, but is no part" if parameter.requires_grad else "is frozen, but is part"
            raise LokiError(f"{name} {state} of the active LoKI adapter: train the adapter alone")
    return True


def _active(adapter: RowAdapter) -> list[nn.Parameter]:
    layers = [getattr(adapter, name) for name in adapter.adapter_layer_names]
    return [layer[name].weight for layer in layers for name in adapter.active_adapters if name in layer]
