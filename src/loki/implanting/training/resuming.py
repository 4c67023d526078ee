"""Trainings that were stopped after their last step, and before their result was written."""

import math
from pathlib import Path

from safetensors.torch import load_file
from transformers import PreTrainedModel, Trainer, TrainerState

from loki.artefacts.trainer_state import STATE, read_trainer_state
from loki.implanting.splitting import put_rows
from loki.implanting.training.quantised import put_best_rows
from loki.implanting.training.rows import ROWS_FILE


def take_up_ended(trainer: Trainer, model: PreTrainedModel, checkpoint: Path) -> bool:
    """Take up a training whose steps are all in a checkpoint, where it is one.

    Transformers' trainer takes a step before it asks whether there is one left, so it must not be asked to resume.

    Args:
        trainer: of the same training, before it has trained; gets the checkpoint's log.
        model: gets the rows that the training ended with: the checkpoint's, or the best ones.
        checkpoint: with the exact rows beside it.

    Returns:
        Whether there is nothing left to train; else nothing was done.
    """
    found = read_trainer_state(checkpoint / STATE)
    callbacks = found.get("stateful_callbacks") or {}
    control = callbacks.get("TrainerControl") if isinstance(callbacks, dict) else None
    stops = ((control or {}).get("args") or {}).get("should_training_stop")
    # A training that is extended has more steps before it than the one that the checkpoint ended.
    if not stops or found.get("max_steps") != _planned_steps(trainer):
        return False
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
    best = trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and best is not None and Path(best).is_dir():
        put_best_rows(model, Path(best))
    else:
        put_rows(model, load_file(checkpoint / ROWS_FILE))
    return True


def _planned_steps(trainer: Trainer) -> int:
    """As the trainer counts them."""
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    per_epoch = max(1, math.ceil(len(trainer.get_train_dataloader()) / trainer.args.gradient_accumulation_steps))
    return math.ceil(trainer.args.num_train_epochs * per_epoch)  # type: ignore[no-any-return]
