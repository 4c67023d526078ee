"""What a run would do, without doing it: amounts, memory, and the time, from a few timed samples and steps."""

import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loki.analysis.analyse import analyse
from loki.analysis.moments import blocks_of
from loki.analysis.options import MomentsSettings
from loki.artefacts.training_settings import DEFAULT_EPOCHS, Rate
from loki.implanting.directions import free_directions
from loki.implanting.splitting import active_parameters, loki_linears, split_rows
from loki.implanting.training.material import encode_examples
from loki.implanting.training.planning import LEAST_STEPS
from loki.implanting.training.rate_search import SEARCH_STEPS
from loki.implanting.training.tryout import seconds_per_step
from loki.models.model_directory import ModelDirectory
from loki.pipeline.settings import RunSettings
from loki.ranks import pick_device
from loki.selection.strategies import find_strategy
from loki.selection.strategy import Scope

_TIMED_SAMPLES = 2
_BYTES_PER_TRAINED_VALUE = 16  # the row, its gradient and AdamW's two moments, in float32


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        output: the run directory.
        samples: calibration samples to analyse.
        examples: training examples.
        rows: selected rows.
        protect: share of the input directions that is left alone.
        trainable_parameters: values in them.
        parameters: values in the model.
        steps: optimiser steps at most, without those that a rate is found with.
        memory_bytes: weights, trained values and the optimiser's state while training; activations come on top.
        analysis_seconds: from a few timed samples.
        training_seconds: from a few timed steps, with those that a rate is found with.
    """

    output: Path
    samples: int
    examples: int
    rows: int
    protect: float
    trainable_parameters: int
    parameters: int
    steps: int
    memory_bytes: int
    analysis_seconds: float
    training_seconds: float

    def lines(self) -> list[str]:
        """What to print."""
        return [
            f"analyse  {self.samples} samples, about {_span(self.analysis_seconds)}",
            *([f"moments  of all its texts; {self.protect:.0%} of the directions stay"] if self.protect else []),
            f"select   {self.rows} rows",
            f"train    {self.trainable_parameters:,} of {self.parameters:,} parameters, {self.examples} examples, "
            f"at most {self.steps} steps, about {_span(self.training_seconds)}",
            f"memory   {self.memory_bytes / 2**30:.2f} GiB for weights and optimiser, and activations",
            f"output   {self.output} (nothing was written)",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {**asdict(self), "output": str(self.output)}


def estimate(settings: RunSettings, output: Path) -> DryRun:
    """Check a run's settings as the run would, and time a few of its samples and training steps.

    Args:
        settings: what the run would do.
        output: where it would write; it is neither looked at nor written.

    Raises:
        LokiError: for all that the run would refuse before its first phase.
    """
    base = settings.base
    checked = settings.check(base)
    training, text = settings.training, base.text_config
    ids = [sample.input_ids for sample in checked.calibration.samples]
    examples = encode_examples(checked.examples)
    with_rows = base.layers_with_rows
    layers = len(with_rows)
    strategy = find_strategy(settings.selection.strategy)
    rows = strategy.rows(settings.quota, layers, text.hidden_size)
    # A strategy over the whole model may take more of one layer than of another.
    per_layer = rows if strategy.scope is Scope.LAYER else math.ceil(rows / layers)
    model = base.load(device=pick_device())
    parameters, weights = model.num_parameters(), model.get_memory_footprint()
    # Which rows makes no difference to the time.
    chosen = [list(range(per_layer)) if layer in with_rows else [] for layer in range(base.layers)]
    split_rows(model, chosen, base.experts)
    trainable = sum(parameter.numel() for parameter in active_parameters(model).values())
    if settings.protect:
        linears = loki_linears(model).values()
        trainable = sum(len(linear.rows) * _free_directions(linear.in_features, settings.protect) for linear in linears)
    per_epoch = math.ceil(len(examples) / (training.batch_size * training.gradient_accumulation))
    epochs = training.epochs or DEFAULT_EPOCHS
    steps = training.max_steps if training.max_steps > 0 else math.ceil(epochs * per_epoch)
    searched = 0
    if training.learning_rate is Rate.AUTO:
        searched = SEARCH_STEPS
        if training.epochs is None and training.max_steps == -1:
            steps = max(steps, LEAST_STEPS)
    return DryRun(
        output=output,
        samples=len(ids),
        examples=len(examples),
        rows=rows * layers if strategy.scope is Scope.LAYER else rows,
        protect=settings.protect,
        trainable_parameters=trainable,
        parameters=parameters,
        steps=steps,
        memory_bytes=int(weights) + trainable * _BYTES_PER_TRAINED_VALUE,
        analysis_seconds=len(ids) * _seconds_per_sample(base, settings, ids),
        training_seconds=(steps + searched) * seconds_per_step(model, examples, training),
    )


def _free_directions(width: int, protect: float) -> int:
    blocks = blocks_of(width, MomentsSettings.block_size)
    return blocks * free_directions(width // blocks, protect)


def _seconds_per_sample(base: ModelDirectory, settings: RunSettings, ids: list[list[int]]) -> float:
    """Of a few samples of middling length, less what the analysis of a single one takes: loading the model."""
    ordered = sorted(ids, key=len)
    middle = ordered[len(ordered) // 2 :][: 1 + _TIMED_SAMPLES] or ordered
    took = []
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("one", middle[:1]), ("several", middle)):
            questions = Path(folder, f"{name}.jsonl")
            lines = (json.dumps({"input_ids": tokens}) + "\n" for tokens in part)
            questions.write_text("".join(lines), encoding="utf-8")
            started = time.monotonic()
            analyse(base, str(questions), Path(folder, f"{name}.h5"), settings.attribution)
            took.append(time.monotonic() - started)
    if len(middle) == 1:
        return took[0]
    return max(took[1] - took[0], 1e-3) / (len(middle) - 1)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
