"""Training a LoKI model with LlamaFactory: `loki train --backend llamafactory`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import AutoModelForCausalLM

from loki.data.examples import load_training_data
from loki.errors import LokiError
from loki.files import read_json
from loki.implanting.create import create_loki_model
from loki.implanting.llamafactory.configuration import DEEPSPEED_ZERO_2, configuration
from loki.implanting.llamafactory.dataset import write_dataset
from loki.implanting.llamafactory.interpreter import find_interpreter
from loki.implanting.llamafactory.launch import command, launch
from loki.implanting.llamafactory.run_directory import NAME, RunDirectory
from loki.implanting.splitting import active_parameters, loki_linears
from loki.implanting.training.model import quota_of, training_configuration
from loki.implanting.training.output import finish_record, prepare_output, training_record
from loki.implanting.training.result import TrainingResult
from loki.implanting.training.rows import NOTHING_CHANGED
from loki.implanting.training.settings import TrainingSettings, check_held_out, default_learning_rate
from loki.models.checkpoint import Checkpoint
from loki.models.loading import load_config, load_tokenizer, resolve_model


@dataclass(frozen=True)
class LlamaFactorySettings:
    """What only LlamaFactory has.

    Attributes:
        template: name of one of its chat templates; None for the tokenizer's own.
        processes: number of processes; None takes one per GPU.
        deepspeed: train with DeepSpeed ZeRO-2.
        python: Python of an environment with LlamaFactory and LoKI; None finds one, see `find_interpreter`.

    Raises:
        LokiError: if there is to be less than one process.
    """

    template: str | None = None
    processes: int | None = None
    deepspeed: bool = False
    python: Path | None = None

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise LokiError(f"--processes {self.processes} is out of range: it must be at least 1")


def train_with_llamafactory(
    model: str | Path,
    data: Path,
    output: Path,
    settings: TrainingSettings | None = None,
    llamafactory: LlamaFactorySettings | None = None,
    *,
    positions: Path | None = None,
    eval_data: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train the selected rows of a model with LlamaFactory, in a process and an environment of its own.

    Everything that LlamaFactory reads is written to `output/llamafactory`; it writes checkpoints and the trained LoKI
    model to `output`. An interrupted training continues from its last checkpoint when it is started again with the
    same settings.

    Args:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data, see `load_training_data`.
        output: where to write checkpoints and the trained LoKI model, with tokenizer, log and loss plot.
        settings: how to train; None takes the defaults.
        llamafactory: what only LlamaFactory has; None takes the defaults.
        positions: positions file, for an ordinary model.
        eval_data: held-out data in the same form; its loss is computed whenever a checkpoint is saved.
        overwrite: start anew where `output` holds something.
        console: where to say what is trained (default: nowhere).
        progress: where to show how far it has come (default: nowhere).

    Raises:
        LokiError: for bad input of any kind, where LlamaFactory is missing or fails, or no row changed.
    """
    settings, own = settings or TrainingSettings(), llamafactory or LlamaFactorySettings()
    console = console or Console(quiet=True)
    started = time.monotonic()
    check_held_out(settings, eval_data)
    python = find_interpreter(own.python, deepspeed=own.deepspeed)
    tokenizer = load_tokenizer(model)
    chat_template = bool(own.template or tokenizer.chat_template)
    files = {"train": data} | ({"held_out": eval_data} if eval_data else {})
    examples = {name: load_training_data(path, chat_template=chat_template) for name, path in files.items()}
    # DeepSpeed wants torchrun for one process too, and so does LlamaFactory where it sees several GPUs.
    torchrun = own.deepspeed or max(own.processes or 1, torch.cuda.device_count()) > 1
    processes = own.processes or max(1, torch.cuda.device_count())
    record = training_record(
        "llamafactory",
        model,
        settings,
        data=data,
        eval_data=eval_data,
        positions=positions,
        template=own.template,
        deepspeed=own.deepspeed,
        processes=processes,
    )
    training_configuration(model, positions)
    inputs = (model, data, eval_data, positions)
    resume_from = prepare_output(output, record, *inputs, overwrite=overwrite, rows_kept_beside=not own.deepspeed)
    run = RunDirectory(output / NAME)
    loki_model = _loki_model(model, positions, run, resume=resume_from is not None)
    config = load_config(loki_model)
    rate = settings.learning_rate or default_learning_rate(quota_of(config))
    entries: dict[str, dict[str, Any]] = {}
    template = own.template
    for name, part in examples.items():
        entries[name], template = write_dataset(part, run.data(name), tokenizer, template=own.template)
    cuda = torch.cuda.is_available()
    run.write(
        configuration(
            settings,
            model=loki_model,
            dataset_folder=run.path,
            output=output,
            learning_rate=rate,
            template=template,
            evaluate=eval_data is not None,
            # As with TRL: frozen weights keep their type; where they are wider than bfloat16, it is used to compute.
            bf16=cuda and config.dtype in (None, torch.float32) and torch.cuda.is_bf16_supported(),
            use_cpu=not cuda,
            resume_from=resume_from,
            deepspeed=run.deepspeed if own.deepspeed else None,
        ),
        entries,
        DEEPSPEED_ZERO_2 if own.deepspeed else None,
    )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    trainable = sum(parameter.numel() for parameter in active_parameters(skeleton).values())
    console.print(f"{examples['train']}", highlight=False)
    console.print(
        f"{trainable:,} parameters are trained by LlamaFactory, learning rate {rate:.3g}"
        + (f", resuming from {resume_from.name}" if resume_from else ""),
        highlight=False,
    )
    console.print(f"Its log: {run.log}", soft_wrap=True, highlight=False)
    words = command(python, run.configuration, processes=processes if torchrun else None)
    launch(words, run, output, progress=progress)
    rows = dict(zip(loki_linears(skeleton), filter(None, config.target_pos), strict=True))
    changed = _changed_rows(Checkpoint(loki_model), Checkpoint(output), rows)
    finish_record(output, record)
    state = read_json(output / "trainer_state.json", what="state of the trainer")
    loss = next(entry["train_loss"] for entry in reversed(state["log_history"]) if "train_loss" in entry)
    return TrainingResult(output, state["global_step"], loss, trainable, changed, time.monotonic() - started)


def _loki_model(model: str | Path, positions: Path | None, run: RunDirectory, *, resume: bool) -> Path:
    if positions is None:
        return resolve_model(model)
    if not (resume and run.model.is_dir()):
        create_loki_model(model_name=model, target_pos_path=positions, save_dir=run.model, overwrite=True)
    return run.model


def _changed_rows(before: Checkpoint, after: Checkpoint, positions: dict[str, list[int]]) -> int:
    changed = 0
    for name, rows in positions.items():
        old, new = (checkpoint.tensor(f"{name}.weight")[rows] for checkpoint in (before, after))
        changed += int((old != new.to(old.dtype)).any(dim=1).sum())
    if not changed:
        raise LokiError(NOTHING_CHANGED)
    return changed
