"""The selected rows during training: kept in float32, guarded, and saved exactly."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from loki.errors import LokiError
from loki.files import atomic_file
from loki.implanting.sharding import full_tensor, is_sharded, refuse_zero_3
from loki.implanting.splitting import active_parameters, check_trainable, exact_rows, loki_linears, put_rows

ROWS_FILE = "active_rows.safetensors"
NOTHING_CHANGED = (
    "training changed none of the selected rows: check the learning rate (0 at the first step of a warm-up), the data "
    "and, for a model in half precision, whether the rate is large enough"
)


class SelectedRows(TrainerCallback):  # type: ignore[misc]
    """Watches over a model's selected rows while a Hugging Face trainer trains them.

    - they are trained in float32, whatever the type of the frozen weights: small steps would vanish in bfloat16;
    - exactly they are trainable, and the optimiser holds state for nothing else;
    - checkpoints hold them in float32 beside the ordinary weights, so that resuming is exact (DeepSpeed and FSDP2 see
      to that themselves);
    - a gradient, a loss or a row that is NaN or infinite, or a training that changed nothing, is an error.

    Args:
        model: the LoKI model.
        resume_from: checkpoint that training continues from, if any.

    Raises:
        LokiError: if anything but the selected rows is trainable.
    """

    def __init__(self, model: PreTrainedModel, resume_from: Path | None = None) -> None:
        check_trainable(model)
        for parameter in active_parameters(model).values():
            parameter.data = parameter.data.to(torch.float32)
        self._resume_from = resume_from
        self._kept_by_trainer = False
        self.vanished = 0
        self._before = {name: parameter.detach().clone() for name, parameter in active_parameters(model).items()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check what is trained, and put back the exact rows of the checkpoint that training resumes from.

        Raises:
            LokiError: if something else than the selected rows is trained, or DeepSpeed ZeRO-3 is on.
        """
        del state, control
        refuse_zero_3()
        model = kwargs["model"]
        check_trainable(model)
        active = active_parameters(model)
        deepspeed = args.deepspeed_plugin is not None
        self._kept_by_trainer = deepspeed or any(map(is_sharded, active.values()))
        if not deepspeed:  # its optimiser holds flat copies of exactly the trainable parameters
            check_optimized(kwargs["optimizer"], active)
        if self._resume_from is not None and not self._kept_by_trainer:
            saved = load_file(self._resume_from / ROWS_FILE)
            put_rows(model, saved)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the rows exactly, beside the checkpoint's weights.

        Raises:
            LokiError: if one is NaN or infinite.
        """
        del control
        check_finite(kwargs["model"])
        if state.is_world_process_zero and not self._kept_by_trainer:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            rows = {name: tensor.cpu() for name, tensor in exact_rows(kwargs["model"]).items()}
            with atomic_file(folder / ROWS_FILE, overwrite=True) as temporary:
                save_file(rows, temporary)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before a step along a gradient that is NaN or infinite.

        Raises:
            LokiError: if it is NaN or infinite.
        """
        del control
        if not args.fp16:  # whose loss scaling makes infinite gradients on purpose, and then skips the step
            check_gradients(kwargs["model"], state.global_step + 1)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop at a loss that is NaN or infinite."""
        del args, control
        check_logged(kwargs.get("logs") or {}, state.global_step)

    def changed_rows(self, model: PreTrainedModel) -> int:
        """Number of selected rows that training changed. Where the model is sharded, every process must call this.

        A row counts if it still differs once it is rounded to the type that the model is saved in; `vanished` is the
        number of those that do not. A process that had no weights before training, as FSDP2's other ranks where rank 0
        loads, counts 0.

        Raises:
            LokiError: if it is 0, or a row is NaN or infinite.
        """
        check_finite(model)
        saved_as = {f"{name}.active_weight": linear.weight.dtype for name, linear in loki_linears(model).items()}
        changed = self.vanished = 0
        unknown = False
        for name, parameter in active_parameters(model).items():
            after, before = full_tensor(parameter), self._before[name]
            if before.is_meta:
                unknown = True
            elif not name.endswith("active_bias"):
                before, dtype = before.to(after), saved_as.get(name, after.dtype)
                kept = int((after.to(dtype) != before.to(dtype)).any(dim=1).sum())
                changed += kept
                self.vanished += int((after != before).any(dim=1).sum()) - kept
        if not changed and not unknown:
            lost = f"{self.vanished} rows changed by less than the weights' type can hold; " if self.vanished else ""
            raise LokiError(lost + NOTHING_CHANGED)
        return changed


def check_gradients(model: torch.nn.Module, step: int) -> None:
    """Check the gradients of the active rows, before the optimiser follows them.

    Args:
        model: with gradients; parameters without one (DeepSpeed keeps them elsewhere) pass.
        step: number of the step that is about to be taken, for the error message.

    Raises:
        LokiError: if one is NaN or infinite.
    """
    gradients = [
        full_tensor(parameter.grad) for parameter in active_parameters(model).values() if parameter.grad is not None
    ]
    if gradients and not torch.stack([gradient.float().sum() for gradient in gradients]).isfinite().all():
        raise LokiError(
            f"the gradient is NaN or infinite at step {step}, so nothing is saved of it: lower the learning rate, or "
            "train a model in bfloat16 or float32 instead of float16; earlier checkpoints are intact"
        )


def check_finite(model: torch.nn.Module) -> None:
    """Check the active rows themselves.

    Raises:
        LokiError: if one is NaN or infinite.
    """
    for name, parameter in active_parameters(model).items():
        held = parameter.detach()
        if not held.is_meta and not full_tensor(held).isfinite().all():
            raise LokiError(
                f"{name} became NaN or infinite, so nothing is saved: lower the learning rate; earlier checkpoints are "
                "intact"
            )


def check_logged(logs: dict[str, Any], step: int) -> None:
    """Check what a trainer logged: some trainers hide a loss that is NaN or infinite, but not its gradient's norm.

    Raises:
        LokiError: if loss or norm are NaN or infinite.
    """
    for name, shown in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
        value = float(logs.get(name) or 0.0)
        if not math.isfinite(value):
            raise LokiError(
                f"the {shown} is {value} at step {step}: lower the learning rate; earlier checkpoints are intact"
            )


def check_optimized(optimizer: Any, active: dict[str, torch.nn.Parameter]) -> None:
    """Check that an optimiser holds exactly the active rows.

    Args:
        optimizer: of Transformers' trainer, before the first step.
        active: the parameters that hold active rows, by name.

    Raises:
        LokiError: if it does not.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if {id(parameter) for parameter in trained} != {id(parameter) for parameter in active.values()}:
        raise LokiError(
            f"the optimiser holds {sum(parameter.numel() for parameter in trained)} parameters, "
            f"not the {sum(parameter.numel() for parameter in active.values())} of the selected rows"
        )
