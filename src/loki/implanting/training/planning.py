"""How fast and how long to train: the learning rate and the number of steps, where they are not given."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loki.artefacts.run_records import read_record, write_record
from loki.artefacts.training_settings import DEFAULT_EPOCHS, Rate, TrainingSettings, published_learning_rate
from loki.errors import LokiError
from loki.implanting.training.material import Material, quota_of
from loki.implanting.training.rate_search import RateSearch, plot_search
from loki.implanting.training.tryout import Trial

SEARCH, SEARCH_PLOT = "learning_rate.json", "learning_rate.png"
LEAST_STEPS = 150
_PATIENCE = 3  # evaluations without a lower loss on the user's held-out data


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        settings: the user's, with a rate and a length.
        learning_rate: peak learning rate.
        stops_when_known: end once the training examples are reproduced exactly.
        search: how the rate was found, if it was.
        reason: why the rate is this one.
    """

    settings: TrainingSettings
    learning_rate: float
    stops_when_known: bool
    search: RateSearch | None
    reason: str


def plan_training(
    settings: TrainingSettings, material: Material, *, processes: int, search: Callable[[], RateSearch] | None
) -> Plan:
    """Fill in what the settings leave open.

    With an automatic rate and no number of epochs or steps, training takes 3 epochs or `LEAST_STEPS` steps, whichever
    is more; it stops before once it knows the examples, or when the loss on the user's held-out data has stopped to
    fall, and then ends with the best checkpoint.

    Args:
        settings: as they were given.
        material: what is trained.
        processes: number of processes that share a step.
        search: finds a rate; None where none can be tried (sharded model, back end with its own template), which takes
            the published one.

    Raises:
        LokiError: if rates are to be looked at for their damage where none can be tried.
    """
    if not isinstance(settings.learning_rate, Rate):
        return Plan(settings, settings.learning_rate, False, None, "")
    published = published_learning_rate(quota_of(material.config))
    if settings.learning_rate is Rate.PUBLISHED:
        return Plan(settings, published, False, None, " (as published)")
    if search is None:
        if settings.rate_damage is not None:
            raise LokiError(
                f"--rate-damage {settings.rate_damage} is looked at while rates are tried, and none can be tried "
                "under FSDP or DeepSpeed, or where LlamaFactory's --template makes the examples: leave it out"
            )
        return Plan(settings, published, False, None, " (as published: none can be tried here)")
    found = search()
    open_end = settings.epochs is None and settings.max_steps == -1
    if open_end:
        per_step = settings.batch_size * settings.gradient_accumulation * processes
        steps = math.ceil(len(material.examples.dataset) / per_step)
        settings = replace(settings, epochs=float(max(DEFAULT_EPOCHS, math.ceil(LEAST_STEPS / steps))))
        if material.held_out is not None and not settings.keeps_best and not settings.eval_steps:
            settings = replace(settings, early_stopping=_PATIENCE)
        if settings.save_steps is None and not settings.keeps_best:
            settings = replace(
                settings, save_steps=max(steps, LEAST_STEPS // 2)
            )  # short epochs need no checkpoint each
    return Plan(settings, found.learning_rate, open_end, found, "")


def kept_search(
    output: Path, record: dict[str, Any], search: Callable[[Sequence[Trial], Callable[[Trial], None]], RateSearch]
) -> RateSearch:
    """The result of `search`, or what a training or search with the same record has found before.

    Args:
        output: the training's output, where the result is kept as JSON and as a picture, and every trial meanwhile.
        record: what decides the training's result.
        search: finds a rate, given the trials that were made and where to put the next ones.
    """
    key = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()
    kept = read_record(output, SEARCH) or {}
    if kept.get("key") != key:
        kept = {"key": key}
    if kept.get("search"):
        return RateSearch.from_dict(kept["search"])
    trials = [Trial(**trial) for trial in kept.get("trials", [])]

    def note(trial: Trial) -> None:
        if trial not in trials:
            trials.append(trial)
            write_record(output, SEARCH, {"key": key, "trials": [asdict(each) for each in trials]})

    found = search(tuple(trials), note)
    plot_search(found, output / SEARCH_PLOT)
    write_record(output, SEARCH, {"key": key, "search": found.to_dict()})
    return found
