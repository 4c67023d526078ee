from dataclasses import replace
from pathlib import Path

import pytest

from loki.analysis.moments import measure_moments
from loki.analysis.options import MomentsSettings
from loki.demo.build import WEIGHTS
from loki.demo.compare import BATCH_SIZE, best_runs, compare, comparison_table, methods_to_compare
from loki.demo.data import write_calibration
from loki.demo.outcome import Outcome
from loki.demo.world import NEW_PEOPLE, OLD_FAMILIES, World, tiny_world

POSITIONS = [list(range(layer, 128, 4)) for layer in range(4)]


@pytest.fixture(scope="module")
def small_world() -> World:
    world = tiny_world()
    asked = {family: questions[:10] for family, questions in world.asked.items()}
    return replace(world, asked=asked, new=world.new[:8])


def outcome(method: str, learning_rate: float, people: float, new: float = 1.0, seed: int = 0) -> Outcome:
    before = dict.fromkeys(OLD_FAMILIES, 1.0) | {NEW_PEOPLE: 0.0}
    return Outcome(method, learning_rate, seed, 10, 100, before, before | {"people": people, NEW_PEOPLE: new})


@pytest.mark.slow
def test_every_method_learns_and_trains_what_it_should(small_world: World, tmp_path: Path) -> None:
    moments = tmp_path / "moments.safetensors"
    write_calibration(tmp_path / "calibration.jsonl", tiny_world())
    measure_moments(str(WEIGHTS), str(tmp_path / "calibration.jsonl"), moments, MomentsSettings(max_tokens=2000))
    methods = methods_to_compare(POSITIONS, 25, 128, moments)
    for method in methods:
        fast = replace(method, learning_rates=method.learning_rates[-1:])
        (run,) = compare(WEIGHTS, small_world, [fast], required_accuracy=0.9, seeds=[3])
        assert run.new_accuracy >= 0.9 > run.before[NEW_PEOPLE]
        assert run.steps >= 1 and run.steps % -(-len(small_world.new) // BATCH_SIZE) == 0
        if "rows" in run.method or "LoKI" in run.method:
            assert run.trainable_parameters == 4 * 32 * (256 if "protect" in run.method else 512)
    assert run.method == "full fine-tuning"
    assert run.trainable_parameters > 10**6


def test_random_rows_are_as_many_and_differ_by_seed() -> None:
    random_rows = methods_to_compare(POSITIONS, 25, 128, Path("moments.safetensors"))[2].adapter
    assert random_rows is not None
    first, again, other = (random_rows(seed).positions for seed in (0, 0, 1))
    assert first == again != other
    assert [len(rows) for rows in first] == [32, 32, 32, 32]


def test_best_is_the_rate_that_forgets_least_among_those_that_learn() -> None:
    runs = [outcome("a", 1e-3, 0.9), outcome("a", 1e-4, 1.0, new=0.5), outcome("a", 5e-4, 0.95)]
    runs += [outcome("b", 1e-3, 0.8), outcome("b", 1e-3, 0.6, seed=1)]
    best = best_runs(runs, required_accuracy=0.99)
    assert [[run.learning_rate for run in group] for group in best] == [[5e-4], [1e-3, 1e-3]]
    table = comparison_table(runs, required_accuracy=0.99)
    # One of four families lost 5%; then 20% and 40%.
    assert [row[-1] for row in table.rows] == ["1.25 (1.25-1.25)", "7.50 (5.00-10.00)"]


def test_a_method_that_never_learns_is_shown_as_such() -> None:
    runs = [outcome("slow", 1e-3, 1.0, new=0.8), outcome("slow", 5e-4, 0.5, new=0.9), outcome("fast", 1e-3, 0.9)]
    slow, fast = comparison_table(runs, required_accuracy=0.99).rows
    assert (slow[0], slow[2], slow[4], slow[5]) == ("slow", "0.0005", "0.900", "0.99 not reached")
    assert fast[5] == "2.50 (2.50-2.50)"
