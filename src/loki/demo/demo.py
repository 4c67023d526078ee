"""The main job on the tiny world: from analysis to a restored, verified model, and what came of it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from rich.progress import Progress

from loki.artefacts.positions import Positions, read_positions
from loki.artefacts.run_layout import PAGE
from loki.artefacts.training_settings import DEFAULT_PROTECT, Scheduler, TrainingSettings
from loki.demo.build import WEIGHTS
from loki.demo.data import write_calibration, write_facts
from loki.demo.outcome import Outcome
from loki.demo.stopping import StopWhenKnown
from loki.demo.tokenizer import MAX_LENGTH
from loki.demo.world import World, tiny_world
from loki.errors import CheckFailed, LokiError
from loki.files import atomic_directory, refuse_existing
from loki.locks import held
from loki.metrics.accuracy import accuracy_by_family, greedy_answer
from loki.models.loading import load_model, load_tokenizer
from loki.models.model_directory import ModelDirectory
from loki.pipeline.phases import ARTEFACTS, Stopwatch, remove_artefacts, run_phases
from loki.pipeline.settings import RunSettings
from loki.restoring.verify import VerifyReport

FACTS = "new-facts.jsonl"
QUOTA = 30
EXAMPLES = 4
REQUIRED_ACCURACY = 0.99
LEARNING_RATE = 2.5e-3  # along the least used input directions, where inputs are small
TRAINING = TrainingSettings(
    epochs=400,  # training stops once the facts are known
    learning_rate=LEARNING_RATE,
    scheduler=Scheduler.CONSTANT,
    warmup=0.0,
    batch_size=16,
    max_length=MAX_LENGTH,
    save_steps=10_000,  # no checkpoints on the way
)


@dataclass(frozen=True)
class DemoResult:
    """What came of the demo.

    Attributes:
        outcome: accuracy before and after, and the cost.
        positions: the selected rows.
        hidden_size: rows per layer.
        parameters: how many parameters the model has.
        verified: what comparing the restored model with the original one showed.
        examples: for a few of the new facts: the prompt, the model's answer before, its answer afterwards.
        seconds: by phase.
    """

    outcome: Outcome
    positions: Positions
    hidden_size: int
    parameters: int
    verified: VerifyReport
    examples: list[tuple[str, str, str]]
    seconds: dict[str, float]


def run_demo(
    output: Path,
    *,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda line: None,  # noqa: ARG005
    progress: Progress | None = None,
) -> DemoResult:
    """Implant the new facts into the tiny world's model; every phase leaves its artefact in `output`.

    Args:
        output: the run directory. It gets a copy of the model too, so that any phase can be typed again from there.
        overwrite: replace the artefacts of an earlier run there.
        announce: called with a line whenever a phase is done (default: nothing is said).
        progress: where to show how far a phase has come (default: nowhere).

    Raises:
        LokiError: if `output` exists and `overwrite` is False, or holds something else than a demo.
        CheckFailed: if the new facts were not learned, or anything but the selected rows changed.
    """
    with held(output):
        return _run(output, Stopwatch(announce), overwrite=overwrite, progress=progress)


def _run(output: Path, watch: Stopwatch, *, overwrite: bool, progress: Progress | None) -> DemoResult:
    _refuse_other(output, overwrite=overwrite)
    world = tiny_world()
    base, calibration, facts = output / "base", output / "calibration.jsonl", output / FACTS
    settings = RunSettings(str(base), facts, str(calibration), quota=QUOTA, training=TRAINING, protect=DEFAULT_PROTECT)

    with watch.phase("prepare", f"the model before: {base}"):
        write_facts(facts, world.new, overwrite=overwrite)  # first: what a killed demo left is known by it
        with atomic_directory(base, overwrite=overwrite) as temporary:
            shutil.copytree(WEIGHTS, temporary, dirs_exist_ok=True)
        write_calibration(calibration, world, overwrite=overwrite)
        before = _accuracy(base, world)
        remove_artefacts(output, "analyse")  # of an earlier demo: all phases are to be shown
    enough = StopWhenKnown(load_tokenizer(base), world.new, REQUIRED_ACCURACY)
    done = run_phases(settings, ModelDirectory(base), output, watch, callbacks=[enough], progress=progress)
    with watch.phase("measure", "accuracy afterwards"):
        after = _accuracy(done.restored, world)
        prompts = [fact.prompt for fact in world.new[:EXAMPLES]]
        examples = list(zip(prompts, _answers(base, prompts), _answers(done.restored, prompts), strict=True))

    training = done.training
    assert training is not None
    outcome = Outcome(
        f"LoKI q={QUOTA}, protect {DEFAULT_PROTECT:g}",
        LEARNING_RATE,
        TRAINING.seed,
        training.steps,
        training.trainable_parameters,
        before,
        after,
    )
    if outcome.new_accuracy < REQUIRED_ACCURACY:
        raise CheckFailed(
            f"after {training.steps} steps the accuracy on the new facts is {outcome.new_accuracy:.3f}, "
            f"not {REQUIRED_ACCURACY}"
        )
    model, positions = load_model(base), read_positions(output / ARTEFACTS["select"])
    return DemoResult(
        outcome, positions, model.config.hidden_size, model.num_parameters(), done.report, examples, watch.seconds
    )


def is_unfinished(output: Path) -> bool:
    """Whether a demo was begun in a directory and not brought to its end, the report."""
    return (output / FACTS).is_file() and not (output / PAGE).exists()


def default_output(*, overwrite: bool = False) -> Path:
    """`runs/demo`, or the first of `runs/demo-2`, `runs/demo-3`, ... that does not exist unless `overwrite` is set."""
    candidates = chain([Path("runs/demo")], (Path(f"runs/demo-{number}") for number in count(2)))
    return next(path for path in candidates if overwrite or not path.exists())


def _refuse_other(output: Path, *, overwrite: bool) -> None:
    if not overwrite or (output / FACTS).is_file():
        refuse_existing(output, overwrite=overwrite)
        return
    try:
        refuse_existing(output, overwrite=False)
    except LokiError as error:
        raise LokiError(f"{output} holds no demo, so --overwrite leaves it alone: choose another --output") from error


def _accuracy(model: Path, world: World) -> dict[str, float]:
    return accuracy_by_family(load_model(model), load_tokenizer(model), [*world.old, *world.new])


def _answers(directory: Path, prompts: list[str]) -> list[str]:
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    return [greedy_answer(model, tokenizer, prompt) for prompt in prompts]
