"""The selected rows during training: kept in float32, guarded, and saved exactly."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from loki.errors import LokiError
from loki.implanting.splitting import active_parameters, check_trainable

ROWS_FILE = "active_rows.safetensors"


class SelectedRows(TrainerCallback):  # type: ignore[misc]
    """Watches over a model's selected rows while a Hugging Face trainer trains them.

    - they are trained in float32, whatever the type of the frozen weights: small steps would vanish in bfloat16;
    - exactly they are trainable, and the optimiser holds state for nothing else;
    - checkpoints hold them in float32 beside the ordinary weights, so that resuming is exact;
    - a loss that is NaN or infinite, or a training that changed nothing, is an error.

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
        self._before = {name: parameter.detach().clone() for name, parameter in active_parameters(model).items()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check what is trained, and put back the exact rows of the checkpoint that training resumes from."""
        del args, state, control
        model = kwargs["model"]
        check_trainable(model)
        active = active_parameters(model)
        trained = [parameter for group in kwargs["optimizer"].param_groups for parameter in group["params"]]
        if {id(parameter) for parameter in trained} != {id(parameter) for parameter in active.values()}:
            raise LokiError(
                f"the optimiser holds {sum(parameter.numel() for parameter in trained)} parameters, "
                f"not the {sum(parameter.numel() for parameter in active.values())} of the selected rows"
            )
        if self._resume_from is not None:
            saved = load_file(self._resume_from / ROWS_FILE)
            with torch.no_grad():
                for name, parameter in active.items():
                    parameter.copy_(saved[name])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the rows exactly, beside the checkpoint's weights."""
        del control
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            rows = {name: parameter.detach().cpu() for name, parameter in active_parameters(kwargs["model"]).items()}
            save_file(rows, folder / ROWS_FILE)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop at a loss that is no number."""
        del args, control
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None and not torch.isfinite(torch.tensor(float(loss))):
            raise LokiError(
                f"the loss is {loss} at step {state.global_step}: lower --learning-rate; earlier checkpoints are intact"
            )

    def changed_rows(self, model: PreTrainedModel) -> int:
        """Number of selected rows that training changed.

        Raises:
            LokiError: if it is 0.
        """
        changed = 0
        for name, parameter in active_parameters(model).items():
            if name.endswith("active_weight"):
                changed += int((parameter.detach() != self._before[name].to(parameter.device)).any(dim=1).sum())
        if not changed:
            raise LokiError("training changed none of the selected rows: check the learning rate and the data")
        return changed
