"""Training a LoKI model with TRL's SFTTrainer, in one process or many."""

import shutil
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import (
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from loki.errors import LokiError, RankError
from loki.files import sha256_of_file, write_json
from loki.implanting.modeling import loki_classes
from loki.implanting.sharding import refuse_zero_3
from loki.implanting.splitting import active_parameters
from loki.implanting.training.arguments import sft_arguments, sharding_of_this_run
from loki.implanting.training.data import TrainingData, load_training_data
from loki.implanting.training.model import quota_of, training_configuration
from loki.implanting.training.output import RECORD, prepare_output
from loki.implanting.training.plot import plot_loss
from loki.implanting.training.result import TrainingResult
from loki.implanting.training.rows import SelectedRows
from loki.implanting.training.settings import TrainingSettings, check_held_out, default_learning_rate
from loki.models.architectures import base_model_type
from loki.models.loading import load_tokenizer, one_line, resolve_model
from loki.ranks import Ranks
from loki.selection.positions import read_positions

LOSS_PLOT = "training_loss.png"
_PATIENCE = timedelta(hours=1)  # for the main process to prepare the data, or for one that has died


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

    An interrupted training continues from its last checkpoint when it is started again with the same settings. Started
    by `accelerate launch` or `torchrun`, the processes share the work as their configuration says (data parallel, FSDP2
    or DeepSpeed ZeRO-2); all of them call this, and the main one writes and prints.

    Args:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data, see `load_training_data`.
        output: where to write checkpoints and the trained LoKI model, with tokenizer, log and loss plot.
        settings: how to train; None takes the defaults.
        positions: positions file, for an ordinary model.
        eval_data: held-out data in the same form; its loss is computed whenever a checkpoint is saved.
        callbacks: further Transformers callbacks.
        overwrite: start anew where `output` holds something.
        console: where to say what is trained (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, a loss that is NaN, or no row changed. Of several processes only the main
            one raises it, and the others exit with its code.
        RankError: if a process runs out of memory.
    """
    settings = settings or TrainingSettings()
    started = time.monotonic()
    ranks = Ranks.current(_PATIENCE)
    console = console if console and ranks.main else Console(quiet=True)
    check_held_out(settings, eval_data)
    tokenizer, examples, held_out = ranks.together(lambda: _read_data(model, data, eval_data))
    config = ranks.together(lambda: training_configuration(model, positions))
    record = {
        "backend": "trl",
        "model": str(model),
        "data": sha256_of_file(data),
        "positions": read_positions(positions) if positions else None,
        **settings.to_dict(),
        "processes": ranks.count,
        "sharding": sharding_of_this_run(),
    }
    rate = settings.learning_rate or default_learning_rate(quota_of(config))
    arguments = sft_arguments(
        settings,
        output,
        learning_rate=rate,
        dtype=config.dtype or torch.float32,
        evaluate=held_out is not None,
        progress_bar=console.is_terminal and not console.quiet,
    )
    ranks.together(refuse_zero_3)  # DeepSpeed's settings are known since the arguments are made
    resume_from = ranks.on_main(lambda: prepare_output(output, record, overwrite=overwrite))
    loki_model = ranks.together(lambda: _load(model, config))
    rows = SelectedRows(loki_model, resume_from)
    trainable = sum(parameter.numel() for parameter in active_parameters(loki_model).values())
    console.print(f"{examples}", highlight=False)
    console.print(
        f"{trainable:,} of {loki_model.num_parameters():,} parameters are trained, learning rate {rate:.3g}"
        + (f", {ranks.count} processes" if ranks.count > 1 else "")
        + (f", resuming from {resume_from.name}" if resume_from else ""),
        highlight=False,
    )
    stopping = [EarlyStoppingCallback(settings.early_stopping)] if settings.early_stopping else []
    trainer = SFTTrainer(
        model=loki_model,
        args=arguments,
        train_dataset=examples.dataset,
        eval_dataset=held_out.dataset if held_out else None,
        processing_class=tokenizer,
        callbacks=[rows, *stopping, *callbacks],
    )
    if console.quiet:
        trainer.remove_callback(PrinterCallback)
    try:
        outcome = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except torch.cuda.OutOfMemoryError as error:
        raise RankError(
            f"out of memory ({one_line(error)}): lower --batch-size or --max-length, or pass --gradient-checkpointing"
        ) from error
    except LokiError as error:  # of a callback, which every process called
        ranks.raise_once(error)
    changed = ranks.together(lambda: rows.changed_rows(loki_model))
    _finish(trainer, output, ranks)
    if ranks.main:
        write_json(output / RECORD, {**record, "finished": True}, overwrite=True)
    return TrainingResult(
        output, trainer.state.global_step, outcome.training_loss, trainable, changed, time.monotonic() - started
    )


def _read_data(
    model: str | Path, data: Path, eval_data: Path | None
) -> tuple[PreTrainedTokenizerBase, TrainingData, TrainingData | None]:
    tokenizer = load_tokenizer(model)
    chat_template = bool(tokenizer.chat_template)
    held_out = load_training_data(eval_data, chat_template=chat_template) if eval_data else None
    return tokenizer, load_training_data(data, chat_template=chat_template), held_out


def _load(model: str | Path, config: PretrainedConfig) -> PreTrainedModel:
    """Not by `load_model`: under FSDP2 with loading on rank 0, the other processes have no weights to move yet."""
    path = resolve_model(model)
    model_class = loki_classes(base_model_type(config.model_type))[1]
    try:
        loaded: PreTrainedModel = model_class.from_pretrained(path, config=config, dtype="auto", use_safetensors=True)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise LokiError(f"the weights in {path} cannot be loaded ({one_line(error)})") from error
    return loaded


def _finish(trainer: SFTTrainer, output: Path, ranks: Ranks) -> None:
    """Save the trained model beside, then move its files into `output`. All processes call this; one writes."""
    folder = output / ".final"
    if ranks.main:
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    trainer.save_model(str(folder))
    if ranks.main:
        for file in sorted(folder.iterdir()):
            file.replace(output / file.name)
        folder.rmdir()
        trainer.state.save_to_json(str(output / "trainer_state.json"))
        plot_loss(trainer.state.log_history, output / LOSS_PLOT)
    ranks.wait()
