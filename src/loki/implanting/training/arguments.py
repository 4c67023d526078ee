"""Training settings as TRL's."""

from dataclasses import fields
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from trl import SFTConfig

from loki.artefacts.training_settings import DEFAULT_EPOCHS, TrainingSettings
from loki.ranks import pick_device

# Transformers 5.24 renamed it, and deprecated the old name.
_CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in fields(SFTConfig)}
)


# Later releases of TRL add a loss that balances experts unless told not to, and fail on a model of such a family that
# has none (Granite 4). Rows are to learn the data alone.
_WITHOUT_ROUTER_LOSS = {
    name: 0.0 for name in ("router_aux_loss_coef",) if name in {field.name for field in fields(SFTConfig)}
}


def sft_arguments(
    settings: TrainingSettings,
    output: Path,
    *,
    learning_rate: float,
    max_length: int,
    dtype: torch.dtype,
    evaluate: bool,
) -> SFTConfig:
    """TRL's configuration. Transformers adds what the configuration of `accelerate launch` says of FSDP or DeepSpeed.

    Args:
        settings: how to train.
        output: where checkpoints go.
        learning_rate: peak learning rate.
        max_length: tokens per example; no more than the model has positions for.
        dtype: type of the frozen weights.
        evaluate: whether there is held-out data.
    """
    cuda = torch.cuda.is_available()
    if sharding_of_this_run() == "deepspeed":
        # It holds all weights in one type, and the optimiser's rows in float32.
        bf16 = dtype == torch.bfloat16
    else:
        # Frozen weights keep their type. Where they are wider than bfloat16, it is used to compute.
        bf16 = cuda and dtype == torch.float32 and torch.cuda.is_bf16_supported()
    strategy = "epoch" if settings.save_steps is None else "steps"
    return SFTConfig(
        output_dir=str(output),
        num_train_epochs=settings.epochs or DEFAULT_EPOCHS,
        max_steps=settings.max_steps,
        learning_rate=learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        max_length=max_length,
        completion_only_loss=True,  # the data says by a mask where loss is taken
        packing=settings.packing,
        eval_packing=False,
        warmup_steps=settings.warmup,  # below 1: a fraction of the steps
        lr_scheduler_type=settings.scheduler,
        weight_decay=settings.weight_decay,
        loss_type=str(settings.loss),
        save_strategy=strategy,
        save_steps=settings.save_steps or 500,
        save_total_limit=2,
        eval_strategy=("steps" if settings.eval_steps else strategy) if evaluate else "no",
        eval_steps=settings.eval_steps or settings.save_steps,
        load_best_model_at_end=settings.keeps_best,
        metric_for_best_model="eval_loss" if settings.keeps_best else None,
        restore_callback_states_from_checkpoint=True,  # how long early stopping has waited
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,  # a loss of NaN would be logged as 0
        seed=settings.seed,
        use_cpu=pick_device().type == "cpu",
        bf16=bf16,
        ddp_find_unused_parameters=False,  # every forward pass uses every row
        disable_tqdm=True,
        report_to=str(settings.report_to),
        **_WITHOUT_ROUTER_LOSS,
        **{
            _CHECKPOINTING: settings.gradient_checkpointing,
            f"{_CHECKPOINTING}_kwargs": {"use_reentrant": False} if settings.gradient_checkpointing else None,
        },
    )


def sharding_of_this_run() -> str | None:
    """What is to hold the parameters, as the launcher says: `deepspeed`, `fsdp`, or None where each process has all."""
    for kind in ("deepspeed", "fsdp"):
        if parse_flag_from_env(f"ACCELERATE_USE_{kind.upper()}"):
            return kind
    return None
