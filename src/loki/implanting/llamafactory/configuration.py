"""Training settings as LlamaFactory's."""

from pathlib import Path
from typing import Any

from loki.artefacts.training_settings import DEFAULT_EPOCHS, Loss, TrainingSettings

# The same as distributed_config/deepspeed_zero2.json.
# ZeRO-2 shards gradients and optimiser state. ZeRO-3 would shard the weights that LoKI splits into rows.
DEEPSPEED_ZERO_2: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "round_robin_gradients": True,
    },
}


def configuration(
    settings: TrainingSettings,
    *,
    model: Path,
    dataset_folder: Path,
    output: Path,
    learning_rate: float,
    template: str,
    evaluate: bool,
    bf16: bool,
    use_cpu: bool,
    tokenised: Path | None = None,
    resume_from: Path | None = None,
    deepspeed: Path | None = None,
) -> dict[str, Any]:
    """What goes into LlamaFactory's YAML file, with absolute paths.

    Args:
        settings: how to train.
        model: LoKI model directory.
        dataset_folder: folder with `dataset_info.json`; without `tokenised` it has the entry `train`, and `held_out` if
            `evaluate`.
        output: directory for checkpoints and the trained model.
        learning_rate: peak learning rate.
        template: name of a LlamaFactory template.
        evaluate: whether to compute the loss on held-out data with every checkpoint.
        bf16: whether to compute in bfloat16 where weights are wider.
        use_cpu: whether to stay off any accelerator.
        tokenised: directory of tokenised examples, see `write_tokenised`.
        resume_from: checkpoint to continue from.
        deepspeed: DeepSpeed configuration file.
    """
    values: dict[str, Any] = {
        "model_name_or_path": str(model.resolve()),
        "trust_remote_code": True,
        "stage": "sft",
        "do_train": True,
        # Of a LoKI model, only the selected rows are trainable; `full` leaves that so.
        "finetuning_type": "full",
        "dataset": "train",
        "dataset_dir": str(dataset_folder.resolve()),
        "template": template,
        "cutoff_len": settings.max_length,
        "packing": settings.packing,
        "mask_history": True,  # every answer is an example of its own
        "overwrite_cache": True,
        "output_dir": str(output.resolve()),
        "overwrite_output_dir": True,
        "save_strategy": "epoch" if settings.save_steps is None else "steps",
        "save_total_limit": 2,
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,
        "plot_loss": False,  # ours is drawn
        "report_to": str(settings.report_to),
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": learning_rate,
        "num_train_epochs": settings.epochs or DEFAULT_EPOCHS,
        "max_steps": settings.max_steps,
        "lr_scheduler_type": str(settings.scheduler),
        "warmup_steps": settings.warmup,  # below 1: a fraction of the steps
        "weight_decay": settings.weight_decay,
        "use_dft_loss": settings.loss is Loss.DFT,
        "use_asft_loss": settings.loss is Loss.ASFT,
        "use_eaft_loss": settings.loss is Loss.EAFT,
        "disable_gradient_checkpointing": not settings.gradient_checkpointing,
        "use_reentrant_gc": False,
        "seed": settings.seed,
        "bf16": bf16,
        "use_cpu": use_cpu,
    }
    if settings.save_steps is not None:
        values["save_steps"] = settings.save_steps
    if tokenised is not None:
        values["tokenized_path"] = str(tokenised.resolve())
    if evaluate:
        values |= {
            "eval_dataset": "held_out",
            "eval_strategy": "steps" if settings.eval_steps else values["save_strategy"],
            "per_device_eval_batch_size": settings.batch_size,
        }
        if settings.eval_steps or settings.save_steps:
            values["eval_steps"] = settings.eval_steps or settings.save_steps
    if settings.keeps_best:
        values |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    if settings.early_stopping is not None:
        values["early_stopping_steps"] = settings.early_stopping
        values["restore_callback_states_from_checkpoint"] = True  # how long it has waited
    if resume_from is not None:
        values["resume_from_checkpoint"] = str(resume_from.resolve())
    if deepspeed is not None:
        values["deepspeed"] = str(deepspeed.resolve())
    return values
