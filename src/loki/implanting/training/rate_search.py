"""Finding a learning rate: a few are tried for some steps, the better ones for more (successive halving).

Afterwards the rows are as they were before.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress
from transformers import PreTrainedModel

from loki.artefacts.training_settings import TrainingSettings
from loki.errors import LokiError
from loki.files import atomic_file
from loki.implanting.training.encoded import Encoded
from loki.implanting.training.tryout import Trial, Tryout

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_FACTOR = 10**0.5  # to the next rate, where the best is the first or the last
_EXTENSIONS = 4
_STEPS = (12, 36)  # after which rates are compared
SEARCH_STEPS = 200  # of a whole search, about: for estimates
_FINALISTS = 2
_LEARNED = 0.1  # of the loss before: what is below needs no greater rate
_NEARLY = 0.9  # of the best fall in loss: rates that reach it have learned as much
_HELD_OUT = 0.1


@dataclass(frozen=True)
class RateSearch:
    """What the search has found.

    Attributes:
        learning_rate: the rate to train with.
        trials: all that was tried, in order.
        loss: before any step, on the training examples.
        held_out_loss: before any step, on those held out.
        seconds: how long it took.
    """

    learning_rate: float
    trials: list[Trial]
    loss: float
    held_out_loss: float | None
    seconds: float

    @property
    def best(self) -> Trial:
        """The last trial of the chosen rate."""
        return [trial for trial in self.trials if trial.learning_rate == self.learning_rate][-1]

    def __str__(self) -> str:
        best = self.best
        held_out = (
            f" (on examples held out meanwhile {self.held_out_loss:.2f} to {best.held_out_loss:.2f})"
            if self.held_out_loss is not None and best.held_out_loss is not None
            else ""
        )
        tried = len({trial.learning_rate for trial in self.trials})
        return (
            f"learning rate {self.learning_rate:.2g} found among {tried} in {self.seconds:.0f} s: "
            f"loss {self.loss:.2f} to {best.loss:.2f} in {best.steps} steps{held_out}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RateSearch":
        """The search that `to_dict` described."""
        return cls(**{**values, "trials": [Trial(**trial) for trial in values["trials"]]})


def search_rate(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    held_out: Sequence[Encoded] | None,
    settings: TrainingSettings,
    *,
    general: list[list[int]] | None = None,
    known: Sequence[Trial] = (),
    note: Callable[[Trial], None] | None = None,
    progress: Progress | None = None,
) -> RateSearch:
    """Try learning rates on a model, and find the one to train with.

    Five rates take 12 steps each, and the two with the lower loss 24 more. Where the best of the five is the least or
    the greatest of them, rates beyond it are tried too. The loss is that on the examples trained on where all were seen
    by then, else that on held-out ones. If the training is long enough for it, smaller rates follow, one by one, as
    long as their loss falls about as far as the best one's: what learns the same at a smaller rate does less damage. Of
    all these the one with the lower held-out loss is taken, which has changed less of what it was not asked to; without
    held-out examples the smallest. With `settings.rate_damage`, rates that do more damage than that come last.

    Args:
        model: a LoKI model; its rows are the same afterwards, and of type float32.
        examples: training data.
        held_out: data to judge by beside them; None holds a tenth of them out meanwhile.
        settings: batch size, weight decay and seed of the training, and the damage that a rate may do.
        general: token ids of the text that damage is looked at on; None does not look.
        known: trials of an interrupted search with the same arguments, which are not made again.
        note: called with every trial once it was made.
        progress: where to show how far it has come.

    Raises:
        LokiError: if the loss is NaN or infinite, or the damage too great, with every rate.
    """
    started = time.monotonic()
    trained, held_out = _parts(examples, held_out, settings.seed)
    tried = Tryout(model, trained, held_out, settings, general)
    limit = math.inf if settings.rate_damage is None else settings.rate_damage
    made = {(trial.learning_rate, trial.steps): trial for trial in known}
    size = settings.batch_size * settings.gradient_accumulation
    repeated = _STEPS[0] * size >= len(trained)

    def judged(trial: Trial) -> float:
        return trial.loss if repeated or trial.held_out_loss is None else trial.held_out_loss

    def beyond_limit(trial: Trial) -> float:
        if trial.damage is None or trial.damage <= limit:
            return 0.0
        return math.inf if math.isnan(trial.damage) else trial.damage

    def rank(trial: Trial) -> tuple[float, float, float]:
        return beyond_limit(trial), max(judged(trial), _LEARNED * start), trial.learning_rate

    task = progress.add_task("finding a learning rate", total=len(RATES) + _FINALISTS) if progress else None

    def attempt(rate: float, steps: int) -> Trial:
        trial = made.get((rate, steps)) or tried.attempt(rate, steps)
        if note:
            note(trial)
        if progress and task is not None:
            progress.advance(task)
        return trial

    try:
        before = tried.losses()
        start = before[0] if repeated or before[1] is None else before[1]
        trials = [attempt(rate, _STEPS[0]) for rate in RATES]
        for _ in range(_EXTENSIONS):
            ordered = sorted(trials, key=lambda trial: trial.learning_rate)
            best = min(trials, key=rank)
            if best is ordered[-1] and judged(best) > _LEARNED * start and not beyond_limit(best):
                beyond = best.learning_rate * _FACTOR
            elif best is ordered[0] and math.isfinite(best.loss):
                beyond = best.learning_rate / _FACTOR
            else:
                break
            if progress and task is not None:
                progress.update(task, total=len(trials) + 1 + _FINALISTS)
            trials.append(attempt(_rounded(beyond), _STEPS[0]))
        finalists = [attempt(trial.learning_rate, _STEPS[1]) for trial in sorted(trials, key=rank)[:_FINALISTS]]
        best = min(finalists, key=lambda trial: (beyond_limit(trial), judged(trial)))
        enough = max(start - _NEARLY * (start - judged(best)), judged(best))

        def as_good(trial: Trial) -> bool:
            return judged(trial) <= enough and not beyond_limit(trial)

        equal = [trial for trial in finalists if as_good(trial)]
        for rate in _smaller(trials, equal) if _is_long(settings, len(examples)) else ():
            if progress and task is not None:
                progress.update(task, total=len(trials) + len(finalists) + 1)
            finalists.append(attempt(rate, _STEPS[1]))
            if not as_good(finalists[-1]):
                break
            equal.append(finalists[-1])
    finally:
        tried.restore()
        if progress and task is not None:
            progress.remove_task(task)
    if beyond_limit(best):
        raise LokiError(
            f"every learning rate that was tried does more damage than --rate-damage {limit:g}: {best.damage:.3g} nats "
            f"per token is the least, with {best.learning_rate:.2g}; allow more, or protect more (--protect)"
        )
    if not math.isfinite(best.loss):
        raise LokiError(
            "the loss is NaN or infinite with every learning rate that was tried: check the model and the data"
        )
    chosen = min(
        equal,
        key=lambda trial: trial.learning_rate if trial.held_out_loss is None else trial.held_out_loss,
    )
    return RateSearch(chosen.learning_rate, [*trials, *finalists], *before, time.monotonic() - started)


def _smaller(trials: Sequence[Trial], than: Sequence[Trial]) -> list[float]:
    """The rates among `trials` below all of `than`, the greatest first; none below nothing."""
    least = min((trial.learning_rate for trial in than), default=0.0)
    return sorted((trial.learning_rate for trial in trials if trial.learning_rate < least), reverse=True)


def _is_long(settings: TrainingSettings, examples: int) -> bool:
    """Whether a training goes as far as a trial does; its rate falls to zero, so that it needs twice the steps."""
    if settings.epochs is None and settings.max_steps == -1:
        return True
    size = settings.batch_size * settings.gradient_accumulation
    steps = settings.max_steps if settings.max_steps != -1 else (settings.epochs or 0) * math.ceil(examples / size)
    return steps >= 2 * _STEPS[1]


def plot_search(search: RateSearch, path: Path) -> None:
    """Draw the losses over the rates, as PNG; an old file is replaced."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for steps in _STEPS:
        for name, style in (("loss", "-"), ("held_out_loss", "--")):
            points = sorted(
                (trial.learning_rate, getattr(trial, name))
                for trial in search.trials
                if trial.steps == steps and getattr(trial, name) is not None and math.isfinite(getattr(trial, name))
            )
            if points:
                label = f"{'trained on' if name == 'loss' else 'held out'}, {steps} steps"
                axes.plot(*zip(*points, strict=True), style, marker=".", label=label)
    axes.axhline(search.loss, color="grey", linewidth=0.8)
    axes.axvline(search.learning_rate, color="grey", linestyle=":")
    axes.set(xlabel="learning rate", ylabel="loss", xscale="log")
    axes.legend()
    with atomic_file(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _parts(
    examples: Sequence[Encoded], held_out: Sequence[Encoded] | None, seed: int
) -> tuple[Sequence[Encoded], Sequence[Encoded] | None]:
    """What to train on and what to judge by: a tenth of the examples where there is no other data."""
    if held_out or len(examples) < 2 / _HELD_OUT:
        return examples, held_out
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    kept = max(1, round(_HELD_OUT * len(examples)))
    return shuffled[kept:], shuffled[:kept]


def _rounded(rate: float) -> float:
    return float(f"{rate:.1e}")
