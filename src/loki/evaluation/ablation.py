"""The paper's suppression ablation: what a model loses when rows of high or low scores are set to zero."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import torch
from transformers import PreTrainedModel

from loki.artefacts.positions import Positions, check_positions_fit
from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from loki.evaluation.harness import Harness
from loki.evaluation.lm_eval_results import tasks_in
from loki.evaluation.measure import Loaded, load
from loki.evaluation.options import MeasureOptions
from loki.evaluation.subjects import Subject
from loki.metrics.text import text_loss
from loki.metrics.texts import text_sources
from loki.models.architectures import text_config
from loki.models.experts import row_tensors
from loki.models.tensor_names import selected_by_tensor
from loki.selection.accumulators import RowCounter
from loki.selection.controls import by_chance
from loki.selection.quota import rows_for_quota
from loki.selection.strategy import By, Counting, Inputs, Request, Scope

ORDERS = {
    "lowest signed": (By.SIGNED, False),
    "highest signed": (By.SIGNED, True),
    "lowest absolute": (By.ABSOLUTE, False),
    "highest absolute": (By.ABSOLUTE, True),
}
RANDOM = "random"
_CLEAR = 0.1  # nats per token: what rows that matter must cost more than rows that do not
_QUIETER = 0.5  # and how much of a random draw's damage rows that do not matter may do


@dataclass(frozen=True)
class AblationOptions:
    """What is set to zero.

    Attributes:
        quotas: percentages of the rows of every layer.
        seeds: of the random draws, the control.
    """

    quotas: tuple[float, ...] = (1, 5, 10, 30)
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class AblationPoint:
    """The model with some rows at zero.

    Attributes:
        order: which rows, a key of `ORDERS`, or `random`.
        seed: of a random draw; None for the others.
        quota: how many, in percent of every layer's.
        loss: on the text, in nats per token.
        scores: mean score by task.
    """

    order: str
    seed: int | None
    quota: float
    loss: float
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """The curves.

    Attributes:
        base_loss: of the whole model.
        base_scores: of the whole model, by task.
        points: every order and quota.
    """

    base_loss: float
    base_scores: dict[str, float]
    points: tuple[AblationPoint, ...]

    def rise(self, order: str, quota: float) -> float:
        """Rise of the loss; the median of the random draws."""
        return median(self.rises(order, quota))

    def rises(self, order: str, quota: float) -> list[float]:
        """Rise of the loss, of every draw."""
        found = [point.loss for point in self.points if (point.order, point.quota) == (order, quota)]
        return [loss - self.base_loss for loss in found]

    def quotas(self) -> list[float]:
        """The quotas, ascending."""
        return sorted({point.quota for point in self.points})

    def separates(self, kind: str) -> bool:
        """Whether scores of a kind (`signed`, `absolute`) tell rows that matter from rows that do not.

        They do if, averaged over the quotas, the highest cost clearly more than the lowest, and the lowest no more than
        half of what random rows cost.
        """
        quotas = self.quotas()
        low, high, random = (
            mean(self.rise(order, quota) for quota in quotas) for order in (f"lowest {kind}", f"highest {kind}", RANDOM)
        )
        return high - low > _CLEAR and low <= max(_QUIETER * random, _CLEAR)

    def sentences(self) -> list[str]:
        """What the curves say about the scores, one sentence for the signed and one for the absolute ones."""
        sentences = []
        for kind in ("signed", "absolute"):
            verb = "separate" if self.separates(kind) else "do not separate"
            parts = [
                f"at {quota:g}% zeroing the lowest costs {self.rise(f'lowest {kind}', quota):.3g} nats per token, the "
                f"highest {self.rise(f'highest {kind}', quota):.3g}, random rows {self.rise(RANDOM, quota):.3g}"
                for quota in (self.quotas()[0], self.quotas()[-1])
            ]
            shown = "; ".join(dict.fromkeys(parts))
            sentences.append(f"{kind.capitalize()} scores {verb} rows that matter from rows that do not: {shown}.")
        return sentences


def ablate(
    subject: Subject,
    scores: Path,
    options: AblationOptions | None = None,
    measure: MeasureOptions | None = None,
    *,
    announce: Callable[[AblationPoint], None] = lambda point: None,  # noqa: ARG005
) -> Ablation:
    """Set rows to zero in memory, a quota at a time, and measure what that costs.

    Args:
        subject: the model.
        scores: scores file of that model.
        options: what is set to zero.
        measure: text and tasks.
        announce: called when a point has been measured (default: nothing is done).

    Raises:
        LokiError: if the scores do not fit the model, or for bad input of any other kind.
    """
    options, measure = options or AblationOptions(), measure or MeasureOptions()
    if not options.quotas or not options.seeds:
        raise LokiError("an ablation needs at least one quota and one seed")
    subject.model.check_editable()
    selections = list(_selections(scores, options))
    harness = Harness(measure.tasks) if measure.tasks.tasks else None
    texts = [text for source in text_sources(measure.texts) for text in source.texts]
    loaded = load(subject, measure)
    experts = subject.model.experts
    layers, hidden = row_tensors(loaded.model, experts), text_config(loaded.model.config).hidden_size
    check_positions_fit(selections[0][3], layers=len(layers), hidden=hidden, origin=f"scores file {scores}")

    def point(order: str, seed: int | None, quota: float, positions: Positions) -> AblationPoint:
        with zeroed(loaded.model, positions, experts):
            loss = text_loss(loaded.model, loaded.tokenizer, texts, window=measure.window).loss
            return AblationPoint(order, seed, quota, loss, _task_scores(loaded, positions, harness, measure))

    base = point("", None, 0, [[] for _ in layers])
    points = []
    for order, seed, quota, positions in selections:
        points.append(point(order, seed, quota, positions))
        announce(points[-1])
    return Ablation(base.loss, base.scores, tuple(points))


@contextmanager
def zeroed(model: PreTrainedModel, positions: Positions, experts: str | None = None) -> Iterator[None]:
    """Set the selected rows of every `down_proj.weight`, and of its bias, to zero inside the block."""
    kept = []
    with torch.no_grad():
        for name, index in selected_by_tensor(row_tensors(model, experts), positions).items():
            parameter = model.get_parameter(name)
            kept.append((parameter, index, parameter[index].clone()))
            parameter[index] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, index, values in kept:
                parameter[index] = values


def _selections(scores: Path, options: AblationOptions) -> Iterator[tuple[str, int | None, float, Positions]]:
    with ScoresReader(scores) as reader:
        layers, hidden = reader.layers, reader.hidden
        counters = {
            (order, quota): RowCounter(
                layers, hidden, rows_for_quota(quota, hidden), Scope.LAYER, Counting(highest=highest), by
            )
            for order, (by, highest) in ORDERS.items()
            for quota in options.quotas
        }
        for _, chunk in reader.chunks():
            for counter in counters.values():
                counter.update(chunk)
    for (order, quota), counter in counters.items():
        yield order, None, quota, counter.positions()
    for quota in options.quotas:
        for seed in options.seeds:
            rows = rows_for_quota(quota, hidden)
            request = Request(rows, Scope.LAYER, layers, hidden, Inputs(scores=scores), seed=seed)
            yield RANDOM, seed, quota, by_chance(request)


def _task_scores(
    loaded: Loaded, positions: Positions, harness: Harness | None, measure: MeasureOptions
) -> dict[str, float]:
    if harness is None:
        return {}
    ablated = hashlib.sha256(f"{loaded.fingerprint} {json.dumps(positions)}".encode()).hexdigest()[:32]
    results = harness.run(ablated, loaded.model, loaded.tokenizer)
    return {task: float(items.scores.mean()) for task, items in tasks_in(results, measure.metrics).items()}
