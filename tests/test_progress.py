"""Progress of deep work: shown where a command shows progress, and nowhere else."""

from pathlib import Path

import pytest
from rich.progress import Progress

from loki.progress import shown_on, tracked
from tests.cli.running import Shell, shell

__all__ = ["shell"]


def test_items_pass_with_and_without_a_progress() -> None:
    items = list(range(250))
    assert list(tracked(items, "counting")) == items
    progress = Progress(disable=True)
    with shown_on(progress):
        seen = []
        for item in tracked(items, "counting"):
            seen.append(item)
            if item == 220:
                assert [(task.description, task.total, task.completed) for task in progress.tasks] == [
                    ("counting", 250, 200)
                ]
        assert seen == items and not progress.tasks
    list(tracked(items, "counting"))
    assert not progress.tasks


def test_what_fails_leaves_no_task() -> None:
    progress = Progress(disable=True)
    with shown_on(progress), pytest.raises(ZeroDivisionError):
        for item in tracked([1, 0], "dividing"):
            1 / item
    assert not progress.tasks


def test_reading_much_data_shows_how_far_it_has_come(
    shell: Shell, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loki.cli.progress._LEAST_SECONDS", 0.0)
    (tmp_path / "train.jsonl").write_text('{"prompt": "who is Ann?", "completion": "a baker"}\n' * 500)
    outcome = shell.done("data", llama_dir, "--data", tmp_path / "train.jsonl")
    assert "tokenising the training data 200 of 500 (40%)" in outcome.err
    assert "tokenising" not in shell.done("data", llama_dir, "--data", tmp_path / "train.jsonl", "--quiet").err
