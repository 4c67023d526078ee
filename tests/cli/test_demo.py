import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from loki.demo import compare as compare_module
from loki.demo import demo as demo_module
from loki.demo.compare import Method, methods_to_compare
from loki.demo.world import NEW_PEOPLE, OLD_FAMILIES
from tests.cli.running import Shell

pytestmark = pytest.mark.slow  # all of it needs a whole demo


def test_shows_the_tables_and_says_where_everything_is(shell: Shell, tmp_path: Path) -> None:
    run_directory = tmp_path / "run"
    outcome = shell.done("demo", "--output", run_directory)
    for words in (NEW_PEOPLE, *OLD_FAMILIES, "forgetting", "trainable parameters", "analyse"):
        assert words in outcome.out
    assert f"Everything the phases left is in {run_directory}" in outcome.out
    assert (run_directory / "results.json").is_file()
    assert "verify" in outcome.err
    assert "'loss'" not in outcome.out + outcome.err

    again = shell("demo", "--output", run_directory)
    assert again.code == 2
    assert "--overwrite" in again.err


@pytest.mark.slow
def test_comparison_shows_and_keeps_what_came_out(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_methods(*sizes: object) -> list[Method]:
        loki, *_, full = methods_to_compare(*sizes)
        return [replace(loki, learning_rates=loki.learning_rates[-1:]), replace(full, learning_rates=[1e-9])]

    monkeypatch.setattr(compare_module, "methods_to_compare", two_methods)
    monkeypatch.setattr(compare_module, "compare", partial(compare_module.compare, seeds=[0]))
    monkeypatch.setattr(compare_module, "MAX_EPOCHS", 60)
    outcome = shell.done("demo", "--compare", "--output", tmp_path / "run")
    assert "Best learning rate of each method, mean of 1 seeds" in outcome.out
    assert "0.99 not reached" in outcome.out
    runs = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert [run["method"] for run in runs] == ["LoKI q=30, protect 0.5", "full fine-tuning"]
    assert "not reached" in (tmp_path / "run" / "comparison.md").read_text()


def test_facts_that_are_not_learned_are_a_failed_check(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "REQUIRED_ACCURACY", 1.01)  # never reached: training takes all its epochs
    monkeypatch.setattr(demo_module, "TRAINING", replace(demo_module.TRAINING, epochs=2))
    outcome = shell("demo", "--output", tmp_path / "run")
    assert outcome.code == 1
    assert "not 1.01" in outcome.err
