from dataclasses import replace
from pathlib import Path

import pytest

from loki.demo import demo as demo_module
from loki.demo.world import NEW_PEOPLE, OLD_FAMILIES
from tests.cli.running import Shell


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


def test_facts_that_are_not_learned_are_a_failed_check(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "REQUIRED_ACCURACY", 1.01)  # never reached: training takes all its epochs
    monkeypatch.setattr(demo_module, "TRAINING", replace(demo_module.TRAINING, epochs=2))
    outcome = shell("demo", "--output", tmp_path / "run")
    assert outcome.code == 1
    assert "not 1.01" in outcome.err
