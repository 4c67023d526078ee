"""Training a LoKI model with TRL's SFTTrainer, in one process or many."""

import shutil
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from transformers import (
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from loki.data.examples import TrainingData, load_training_data
from loki.data.fitting import fit_to_model, length_within
from loki.errors import LokiError, RankError, out_of_memory
from loki.implanting.modeling import loki_classes
from loki.implanting.sharding import refuse_zero_3
from loki.implanting.splitting import active_parameters
from loki.implanting.training.arguments import sft_arguments, sharding_of_this_run
from loki.implanting.training.memory import memory_advice, resume_advice
from loki.implanting.training.model import quota_of, training_configuration
from loki.implanting.training.output import finish_record, prepare_output, training_record
from loki.implanting.training.plot import plot_loss
from loki.implanting.training.result import TrainingResult
from loki.implanting.training.rows import SelectedRows
from loki.implanting.training.settings import TrainingSettings, check_held_out, default_learning_rate
from loki.models.architectures import base_model_type
from loki.models.directories import copy_side_files
from loki.models.loading import load_tokenizer, load_weights, resolve_model
from loki.ranks import Ranks

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
    config = ranks.together(lambda: training_configuration(model, positions))
    length = length_within(config, settings.max_length)
    tokenizer, examples, held_out = ranks.together(lambda: _read_data(model, data, eval_data, length))
    sharding = sharding_of_this_run()
    record = training_record(
        "trl",
        model,
        settings,
        data=data,
        eval_data=eval_data,
        positions=positions,
        processes=ranks.count,
        sharding=sharding,
    )
    rate = settings.learning_rate or default_learning_rate(quota_of(config))
    arguments = sft_arguments(
        settings,
        output,
        learning_rate=rate,
        max_length=length,
        dtype=config.dtype or torch.float32,
        evaluate=held_out is not None,
        progress_bar=console.is_terminal and not console.quiet,
    )
    ranks.together(refuse_zero_3)  # DeepSpeed's settings are known since the arguments are made
    resume_from = ranks.on_main(
        lambda: prepare_output(
            output,
            record,
            *(model, data, eval_data, positions),
            overwrite=overwrite,
            rows_kept_beside=sharding is None,
        )
    )
    loki_model = ranks.together(lambda: _load(model, config))
    rows = SelectedRows(loki_model, resume_from)
    trainable = sum(parameter.numel() for parameter in active_parameters(loki_model).values())
    whole = loki_model.num_parameters() - trainable  # the frozen weights hold a place for every row
    console.print(f"{examples}", highlight=False, soft_wrap=True)
    console.print(
        f"{trainable:,} of {whole:,} parameters are trained, learning rate {rate:.3g}"
        + (f", {ranks.count} processes" if ranks.count > 1 else "")
        + (f", {length} tokens per example, as the model has no more positions" if length < settings.max_length else "")
        + (f", resuming from {resume_from.name}" if resume_from else ""),
        highlight=False,
        soft_wrap=True,
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
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise RankError(memory_advice(error) + resume_advice(output)) from error
    except LokiError as error:  # of a callback, which every process called
        ranks.raise_once(error)
    changed = ranks.together(lambda: rows.changed_rows(loki_model))
    loki_model.config.use_cache = config.use_cache  # which the trainer switches off
    _finish(trainer, resolve_model(model), output, ranks)
    if ranks.main:
        finish_record(output, record)
    return TrainingResult(
        output, trainer.state.global_step, outcome.training_loss, trainable, changed, time.monotonic() - started
    )


def _read_data(
    model: str | Path, data: Path, eval_data: Path | None, max_length: int
) -> tuple[PreTrainedTokenizerBase, TrainingData, TrainingData | None]:
    tokenizer = load_tokenizer(model)

    def read(path: Path) -> TrainingData:
        data = load_training_data(path, chat_template=bool(tokenizer.chat_template))
        return fit_to_model(data, tokenizer, max_length)

    return tokenizer, read(data), read(eval_data) if eval_data else None


def _load(model: str | Path, config: PretrainedConfig) -> PreTrainedModel:
    """Not by `load_model`: under FSDP2 with loading on rank 0, the other processes have no weights to move yet."""
    model_class = loki_classes(base_model_type(config.model_type))[1]
    return load_weights(model_class, resolve_model(model), config=config, dtype="auto")


def _finish(trainer: SFTTrainer, source: Path, output: Path, ranks: Ranks) -> None:
    """Save the trained model beside, then move its files into `output`. All processes call this; one writes.

    Tokenizer and other side files are those of `source`, to the last bit.
    """
    folder = output / ".final"
    if ranks.main:
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    trainer.save_model(str(folder))
    if ranks.main:
        copy_side_files(source, folder)
        for file in sorted(folder.iterdir()):
            file.replace(output / file.name)
        folder.rmdir()
        trainer.state.save_to_json(str(output / "trainer_state.json"))
        plot_loss(trainer.state.log_history, output / LOSS_PLOT)
    ranks.wait()
