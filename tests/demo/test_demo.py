import json
from pathlib import Path

import pytest

from loki.artefacts.positions import read_positions
from loki.artefacts.scores import ScoresReader
from loki.demo.demo import REQUIRED_ACCURACY, DemoResult, default_output, is_unfinished, run_demo
from loki.demo.reporting import accuracy_table, examples_table, save_comparison, save_results, seconds_table
from loki.demo.world import NEW_PEOPLE, OLD_FAMILIES, tiny_world
from loki.errors import LokiError
from loki.metrics.accuracy import accuracy_by_family
from loki.models.loading import load_model, load_tokenizer
from loki.restoring.verify import verify

pytestmark = pytest.mark.slow  # all of it needs a whole demo

PHASES = ["prepare", "analyse", "moments", "select", "create", "train", "restore", "verify", "measure"]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "run"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(run_directory: Path, lines: list[str]) -> DemoResult:
    return run_demo(run_directory, announce=lines.append)


def test_learns_the_new_facts_and_keeps_the_old(result: DemoResult) -> None:
    outcome = result.outcome
    assert outcome.before[NEW_PEOPLE] < 0.25
    assert outcome.new_accuracy >= REQUIRED_ACCURACY
    assert all(outcome.before[family] >= 0.95 for family in OLD_FAMILIES)
    assert outcome.forgetting < 3


def test_what_is_reported_is_what_the_artefacts_show(result: DemoResult, run_directory: Path) -> None:
    base, restored = run_directory / "base", run_directory / "restored"
    world, tokenizer = tiny_world(), load_tokenizer(restored)
    asked = [*world.old, *world.new]
    assert accuracy_by_family(load_model(base), tokenizer, asked) == result.outcome.before
    assert accuracy_by_family(load_model(restored), tokenizer, asked) == result.outcome.after
    assert type(load_model(restored)).__name__ == "LlamaForCausalLM"

    positions = read_positions(run_directory / "positions.json")
    assert [len(rows) for rows in positions] == [38] * 4
    report = verify(base, restored, positions)
    assert not report.differences
    assert report.changed_rows == 4 * 38
    trained = load_model(run_directory / "trained")
    trainable = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    assert result.outcome.trainable_parameters == trainable == 4 * 38 * 256  # along half of 512 input directions
    with ScoresReader(run_directory / "scores.h5") as scores:
        assert (scores.samples, scores.layers, scores.hidden) == (256, 4, 128)


def test_every_phase_is_timed_and_announced(result: DemoResult, lines: list[str]) -> None:
    assert list(result.seconds) == PHASES
    assert [line.split()[0] for line in lines] == PHASES
    assert [row[0] for row in seconds_table(result).rows] == [*PHASES, "all"]


def test_table_shows_before_and_after_of_every_family(result: DemoResult) -> None:
    cells = {row[0]: row[1:] for row in accuracy_table(result).rows}
    for family in (NEW_PEOPLE, *OLD_FAMILIES):
        (shown,) = [values for name, values in cells.items() if f": {family} " in name]
        assert shown == [f"{result.outcome.before[family]:.3f}", f"{result.outcome.after[family]:.3f}"]


def test_examples_are_answered_right_afterwards(result: DemoResult) -> None:
    answers = {fact.prompt: fact.answer for fact in tiny_world().new}
    rows = examples_table(result).rows
    assert [row[2] for row in rows] == [answers[row[0].removesuffix(" ...")] for row in rows]
    assert any(before != after for _, before, after in rows)


def test_results_are_saved_and_not_replaced(result: DemoResult, tmp_path: Path) -> None:
    save_results(tmp_path, result)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["after"] == result.outcome.after
    assert saved["forgetting_percent"] == result.outcome.forgetting
    assert accuracy_table(result).markdown() in (tmp_path / "results.md").read_text()
    with pytest.raises(LokiError, match="exists already"):
        save_results(tmp_path, result)
    save_comparison(tmp_path, [result.outcome], REQUIRED_ACCURACY)
    save_results(tmp_path, result, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_an_earlier_run_is_kept_unless_told_otherwise(result: DemoResult, run_directory: Path) -> None:
    with pytest.raises(LokiError, match="exists already"):
        run_demo(run_directory)
    again = run_demo(run_directory, overwrite=True)
    assert again.outcome == result.outcome


def test_what_an_interrupted_demo_left_is_known(tmp_path: Path) -> None:
    assert not is_unfinished(tmp_path / "absent") and not is_unfinished(tmp_path)
    (tmp_path / "new-facts.jsonl").touch()
    assert is_unfinished(tmp_path)
    (tmp_path / "report.html").touch()
    assert not is_unfinished(tmp_path)


def test_default_output_is_the_first_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_output() == Path("runs/demo")
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo-2").mkdir()
    assert default_output() == Path("runs/demo-3")
    assert default_output(overwrite=True) == Path("runs/demo")
