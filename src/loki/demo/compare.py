"""LoKI beside its published form, full fine-tuning, LoRA and randomly chosen rows, all on the same new facts.

Every method is trained with the same optimiser on the same batches until it knows the facts equally well, once for each
learning rate of a small grid and each seed. What is reported is each method's best learning rate.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from rich.progress import Progress
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from loki.artefacts.positions import Positions
from loki.artefacts.training_settings import DEFAULT_PROTECT
from loki.demo.outcome import Outcome
from loki.demo.stopping import StopWhenKnown
from loki.demo.world import World
from loki.implanting.peft import LoKIConfig
from loki.metrics.accuracy import Question, accuracy_by_family, collate, encode_question
from loki.models.loading import load_model, load_tokenizer
from loki.report.table import ResultTable

IGNORED_LABEL = -100
PROTECTED_LEARNING_RATES = (1.25e-3, 2.5e-3, 5e-3, 1e-2)
ROW_LEARNING_RATES = (1.25e-4, 2.5e-4, 5e-4, 1e-3)
FULL_LEARNING_RATES = (6.25e-6, 1.25e-5, 2.5e-5, 5e-5)
LORA_LEARNING_RATES = (6.25e-5, 1.25e-4, 2.5e-4, 5e-4)
LORA_RANK = 8
BATCH_SIZE = 16
MAX_EPOCHS = 400
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        name: as the table shows it.
        learning_rates: the grid.
        adapter: the PEFT configuration to train with, by seed; None trains all parameters.
    """

    name: str
    learning_rates: Sequence[float]
    adapter: Callable[[int], PeftConfig] | None


def methods_to_compare(positions: Positions, quota: float, hidden_size: int, moments: Path) -> list[Method]:
    """LoKI on `positions` as it is by default and as published, random rows, LoRA and full fine-tuning.

    Args:
        positions: the selected rows.
        quota: their percentage.
        hidden_size: rows per layer.
        moments: file of second moments, for the directions that are protected by default.
    """

    def protected(seed: int) -> PeftConfig:
        del seed
        return LoKIConfig(positions=positions, moments=moments, protect=DEFAULT_PROTECT)

    def random_rows(seed: int) -> PeftConfig:
        generator = torch.Generator().manual_seed(seed)
        chosen = [torch.randperm(hidden_size, generator=generator)[: len(rows)].tolist() for rows in positions]
        return LoKIConfig(positions=chosen)

    def lora(seed: int) -> PeftConfig:
        del seed  # the global seed decides how LoRA is initialised
        return LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")

    return [
        Method(f"LoKI q={quota:g}, protect {DEFAULT_PROTECT:g}", PROTECTED_LEARNING_RATES, protected),
        Method(f"published rows q={quota:g}", ROW_LEARNING_RATES, lambda seed: LoKIConfig(positions=positions)),  # noqa: ARG005
        Method(f"random rows q={quota:g}", ROW_LEARNING_RATES, random_rows),
        Method(f"LoRA r={LORA_RANK}", LORA_LEARNING_RATES, lora),
        Method("full fine-tuning", FULL_LEARNING_RATES, None),
    ]


def compare(
    base: Path,
    world: World,
    methods: Sequence[Method],
    *,
    required_accuracy: float,
    seeds: Sequence[int] = SEEDS,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Train every method with every learning rate and seed of its grid, each from the model in `base`.

    Runs that do not reach `required_accuracy` on the new facts within `MAX_EPOCHS` epochs are kept in the list; their
    `new_accuracy` says so.
    """
    tokenizer = load_tokenizer(base)
    untouched = load_model(base)
    before = accuracy_by_family(untouched, tokenizer, [*world.old, *world.new])
    runs = [(method, rate, seed) for method in methods for rate in method.learning_rates for seed in seeds]
    task = progress.add_task("comparing", total=len(runs)) if progress else None
    outcomes = []
    for method, rate, seed in runs:
        torch.manual_seed(seed)
        model = copy.deepcopy(untouched)
        if method.adapter is not None:
            model = get_peft_model(model, method.adapter(seed))
        steps = _learn(model, tokenizer, world.new, rate, seed, required_accuracy)
        after = accuracy_by_family(model, tokenizer, [*world.old, *world.new])
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        outcomes.append(Outcome(method.name, rate, seed, steps, trainable, before, after))
        if progress and task is not None:
            progress.advance(task)
    return outcomes


def best_runs(outcomes: Sequence[Outcome], required_accuracy: float) -> list[list[Outcome]]:
    """For each method the runs (one per seed) of the learning rate that forgets least among those that learn the facts.

    Where none does, those of the learning rate that comes closest.
    """
    best = []
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        by_rate: dict[float, list[Outcome]] = {}
        for outcome in outcomes:
            if outcome.method == method:
                by_rate.setdefault(outcome.learning_rate, []).append(outcome)
        learned = [runs for runs in by_rate.values() if _learned(runs, required_accuracy)]
        if learned:
            best.append(min(learned, key=lambda runs: mean(run.forgetting for run in runs)))
        else:
            best.append(max(by_rate.values(), key=lambda runs: min(run.new_accuracy for run in runs)))
    return best


def comparison_table(outcomes: Sequence[Outcome], required_accuracy: float) -> ResultTable:
    """One line per method, of its best learning rate: means over the seeds, and the range of forgetting in brackets.

    A method that did not learn the facts with any learning rate has no forgetting that could be compared.
    """
    best = best_runs(outcomes, required_accuracy)
    header = ["method", "trained", "rate", "steps", "new", "forgetting %"]
    rows = [
        [
            runs[0].method,
            f"{runs[0].trainable_parameters:,}",
            f"{runs[0].learning_rate:g}",
            f"{mean(run.steps for run in runs):.0f}",
            f"{mean(run.new_accuracy for run in runs):.3f}",
            _forgetting(runs) if _learned(runs, required_accuracy) else f"{required_accuracy:g} not reached",
        ]
        for runs in best
    ]
    seeds = len(best[0])
    return ResultTable(f"Best learning rate of each method, mean of {seeds} seeds", header, rows)


def _learned(runs: Sequence[Outcome], required_accuracy: float) -> bool:
    return all(run.new_accuracy >= required_accuracy for run in runs)


def _forgetting(runs: Sequence[Outcome]) -> str:
    values = [run.forgetting for run in runs]
    return f"{mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


class _Encoded(Dataset[tuple[list[int], int]]):
    def __init__(self, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> None:
        self.encoded = [encode_question(tokenizer, question) for question in questions]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> tuple[list[int], int]:
        return self.encoded[index]


def _learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Question],
    learning_rate: float,
    seed: int,
    required_accuracy: float,
) -> int:
    """Train until the facts are known; the number of optimiser steps it took."""

    def labelled(batch: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
        input_ids, answer_mask = collate(batch, tokenizer.eos_token_id)
        return {"input_ids": input_ids, "labels": input_ids.masked_fill(~answer_mask, IGNORED_LABEL)}

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=MAX_EPOCHS,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            seed=seed,
            data_seed=seed,  # the order of the batches; `seed` alone does not change it
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model,
            arguments,
            data_collator=labelled,
            train_dataset=_Encoded(tokenizer, facts),
            callbacks=[StopWhenKnown(tokenizer, facts, required_accuracy)],
        )
        # It prints a line of its own after each run.
        trainer.remove_callback(PrinterCallback)
        return int(trainer.train().global_step)
