"""Training a LoKI model with TRL's SFTTrainer."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from loki.errors import LokiError
from loki.files import sha256_of_file, write_json
from loki.implanting.create import loki_configuration
from loki.implanting.modeling import LoKIConfigMixin, loki_classes
from loki.implanting.splitting import active_parameters, loki_linears
from loki.implanting.training.data import load_training_data
from loki.implanting.training.output import RECORD, prepare_output
from loki.implanting.training.plot import plot_loss
from loki.implanting.training.result import TrainingResult
from loki.implanting.training.rows import SelectedRows
from loki.implanting.training.settings import TrainingSettings, default_learning_rate
from loki.models.checkpoint import check_weights
from loki.models.loading import load_config, load_model, load_tokenizer, one_line, resolve_model
from loki.selection.positions import read_positions

LOSS_PLOT = "training_loss.png"


def train(
    model: str | Path,
    data: Path,
    output: Path,
    settings: TrainingSettings | None = None,
    *,
    positions: Path | None = None,
    eval_data: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    overwrite: bool = False,
    console: Console | None = None,
) -> TrainingResult:
    """Train the selected rows of a model; loss is taken on completions and assistants' answers.

    An interrupted training continues from its last checkpoint when it is started again with the same settings.

    Args:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data, see `load_training_data`.
        output: where to write checkpoints and the trained LoKI model, with tokenizer, log and loss plot.
        settings: how to train; None takes the defaults.
        positions: positions file, for an ordinary model.
        eval_data: held-out data in the same form; its loss is computed after every epoch.
        callbacks: further Transformers callbacks.
        overwrite: start anew where `output` holds something.
        console: where to say what is trained (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, a loss that is NaN, or no row changed.
    """
    settings = settings or TrainingSettings()
    console = console or Console(quiet=True)
    started = time.monotonic()
    tokenizer = load_tokenizer(model)
    examples = load_training_data(data, chat_template=bool(tokenizer.chat_template))
    held_out = load_training_data(eval_data, chat_template=bool(tokenizer.chat_template)) if eval_data else None
    record = {
        "backend": "trl",
        "model": str(model),
        "data": sha256_of_file(data),
        "positions": read_positions(positions) if positions else None,
        **settings.to_dict(),
    }
    resume_from = prepare_output(output, record, overwrite=overwrite)
    loki_model = _load(model, positions)
    rows = SelectedRows(loki_model, resume_from)
    trainable = sum(parameter.numel() for parameter in active_parameters(loki_model).values())
    rate = settings.learning_rate or default_learning_rate(_quota(loki_model))
    console.print(f"{examples}", highlight=False)
    console.print(
        f"{trainable:,} of {loki_model.num_parameters():,} parameters are trained, learning rate {rate:.3g}"
        + (f", resuming from {resume_from.name}" if resume_from else ""),
        highlight=False,
    )
    trainer = SFTTrainer(
        model=loki_model,
        args=_arguments(output, settings, rate, loki_model, evaluate=held_out is not None, console=console),
        train_dataset=examples.dataset,
        eval_dataset=held_out.dataset if held_out else None,
        processing_class=tokenizer,
        callbacks=[rows, *callbacks],
    )
    if console.quiet:
        trainer.remove_callback(PrinterCallback)
    try:
        outcome = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except torch.cuda.OutOfMemoryError as error:
        raise LokiError(
            f"out of memory ({one_line(error)}): lower --batch-size or --max-length, or pass --gradient-checkpointing"
        ) from error
    changed = rows.changed_rows(loki_model)
    _finish(trainer, output)
    write_json(output / RECORD, {**record, "finished": True}, overwrite=True)
    return TrainingResult(
        output, trainer.state.global_step, outcome.training_loss, trainable, changed, time.monotonic() - started
    )


def _load(model: str | Path, positions: Path | None) -> PreTrainedModel:
    path = resolve_model(model)
    config = load_config(path)
    if isinstance(config, LoKIConfigMixin):
        if positions is not None:
            raise LokiError(f"{model} is a LoKI model, which holds its positions: leave out --positions")
        return load_model(path)
    if positions is None:
        raise LokiError(f"{model} is an ordinary model: give --positions, or make a LoKI model with `loki create`")
    check_weights(path)
    loki_config = loki_configuration(path, str(model), read_positions(positions), origin=f"positions file {positions}")
    made: PreTrainedModel = loki_classes(config.model_type)[1].from_pretrained(
        path, config=loki_config, dtype="auto", use_safetensors=True
    )
    return made


def _quota(model: PreTrainedModel) -> float:
    linears = loki_linears(model).values()
    return 100 * sum(len(linear.rows) for linear in linears) / sum(linear.out_features for linear in linears)


def _arguments(
    output: Path,
    settings: TrainingSettings,
    rate: float,
    model: PreTrainedModel,
    *,
    evaluate: bool,
    console: Console,
) -> SFTConfig:
    cuda = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(output),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        learning_rate=rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        max_length=settings.max_length,
        packing=settings.packing,
        warmup_steps=settings.warmup,  # below 1: a fraction of the steps
        lr_scheduler_type=settings.scheduler,
        weight_decay=settings.weight_decay,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        save_strategy="epoch" if settings.save_steps is None else "steps",
        save_steps=settings.save_steps or 500,
        save_total_limit=2,
        eval_strategy="epoch" if evaluate else "no",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,  # a loss of NaN would be logged as 0
        seed=settings.seed,
        use_cpu=not cuda,
        # Frozen weights keep their type. Where they are wider than bfloat16, it is used to compute.
        bf16=cuda and model.dtype == torch.float32 and torch.cuda.is_bf16_supported(),
        disable_tqdm=console.quiet or not console.is_terminal,
        report_to="none",
    )


def _finish(trainer: SFTTrainer, output: Path) -> None:
    """Save the trained model beside, then move its files into `output`."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".final-") as folder:
        trainer.save_model(folder)
        for file in sorted(Path(folder).iterdir()):
            file.replace(output / file.name)
    trainer.state.save_to_json(str(output / "trainer_state.json"))
    plot_loss(trainer.state.log_history, output / LOSS_PLOT)
