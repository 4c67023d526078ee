"""`loki tune`, and `loki run --tune`: the rates that were tried are shown, with their damage."""

from pathlib import Path

import pytest

from loki.artefacts.positions import write_positions
from loki.implanting.training import rate_search
from tests.cli.running import Shell


@pytest.fixture(autouse=True)
def _few_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_search, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(rate_search, "_EXTENSIONS", 0)
    monkeypatch.setattr(rate_search, "_STEPS", (3, 6))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 4)
    return tmp_path / "train.jsonl"


def test_training_goes_on_with_what_was_found(shell: Shell, llama_dir: Path, data: Path, tmp_path: Path) -> None:
    write_positions(tmp_path / "positions.json", [[1, 30], [], [0, 4, 5]])
    words = (llama_dir, "--positions", tmp_path / "positions.json", "--data", data, "--max-steps", 2)
    tuned = shell.done("tune", *words, "--output", tmp_path / "out", "--rate-damage", 5)
    assert "(chosen)" in tuned.out
    assert "KL per token" in tuned.out
    trained = shell.done("train", *words, "--output", tmp_path / "out", "--rate-damage", 5)
    assert "(chosen)" in trained.out
    assert "general text: KL" in trained.out


def test_run_with_tune(shell: Shell, llama_dir: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n')
    files = ("--data", data, "--calibration", tmp_path / "questions.jsonl")
    done = shell.done("run", llama_dir, *files, "--max-steps", 2, "--tune", "--output", tmp_path / "run")
    assert "(chosen)" in done.out
    assert "rate_damage: 0.1" in (tmp_path / "run" / "run.yaml").read_text()
