"""`loki moments` and `--protect` as commands."""

import json
import re
from pathlib import Path

import pytest

from loki.artefacts.moments import Moments
from loki.artefacts.positions import write_positions
from loki.implanting.directions import DIRECTIONS_FILE, read_directions
from tests.cli.running import Shell
from tests.restoring.test_adapter import save_adapter


def test_moments_then_create(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("Some text that is about nothing in particular. " * 30)
    write_positions(tmp_path / "positions.json", [[1, 30], [], [0]])
    moments = tmp_path / "moments.safetensors"
    measured = shell.done(
        *("moments", llama_dir, "--data", tmp_path / "general.txt", "--max-length", 64, "--output", moments)
    )
    assert "1,410 tokens of 23 texts" in measured.out
    words = ("create", llama_dir, "--positions", tmp_path / "positions.json", "--output", tmp_path / "loki")
    shell.done(*words, "--moments", moments, "--protect", 0.5)
    assert json.loads((tmp_path / "loki" / "config.json").read_text())["protect"] == 0.5
    directions = read_directions(tmp_path / "loki" / DIRECTIONS_FILE)
    assert {layer: tuple(span.shape) for layer, span in directions.items()} == {0: (1, 48, 24), 2: (1, 48, 24)}
    refused = shell(*words, "--protect", 0.5, "--overwrite")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert (tmp_path / "loki" / DIRECTIONS_FILE).is_file()


def test_moments_of_the_models_own_texts_and_others(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    own, general = tmp_path / "own.jsonl", tmp_path / "general.txt"
    general.write_text("Some text that is about nothing in particular. " * 30)
    written = shell.done(*("sample", llama_dir, "--tokens", 100, "--length", 50, "--batch-size", 2, "--output", own))
    assert "2 texts of the model's own" in written.out
    words = ("moments", llama_dir, "--data", own, "--data", general, "--max-length", 64, "--max-tokens", 200)
    shell.done(*words, "--output", tmp_path / "both.safetensors")
    assert Moments(tmp_path / "both.safetensors").origin.source == f"{own}, {general}"
    refused = shell("moments", llama_dir, "--data", own, "--output", own, "--overwrite")
    assert (refused.code, refused.err.count("\n")) == (2, 1)


@pytest.mark.slow
def test_run_with_protect(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n{"prompt": "two and two"}\n')
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 4)
    files = ("--data", tmp_path / "train.jsonl", "--calibration", tmp_path / "questions.jsonl")
    words = ("run", llama_dir, *files, "--quota", 25, "--max-steps", 2, "--learning-rate", 1e-2, "--protect", 0.5)
    outcome = shell.done(*words, "--output", tmp_path / "run")
    assert "24 of 24 selected rows changed, and nothing else" in outcome.out
    names = [line.split()[0] for line in outcome.out.splitlines() if re.search(r"\d s   ", line)]
    assert names == ["analyse", "moments", "select", "create", "train", "restore", "verify"]
    config = json.loads((tmp_path / "run" / "loki_model" / "config.json").read_text())
    assert config["protect"] == 0.5
    refused = shell(*words[:-1], 1.5, "--output", tmp_path / "other")
    assert (refused.code, refused.err.count("\n"), (tmp_path / "other").exists()) == (2, 1, False)
    (tmp_path / "general.txt").write_text("Some text that is about nothing in particular. " * 30)
    texts = ("--protect-data", tmp_path / "general.txt", "--protect-data", tmp_path / "questions.jsonl")
    refused = shell(*words, *texts, "--output", tmp_path / "run")
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "moments, select" in refused.err
    again = shell.done(*words, *texts, "--output", tmp_path / "run", "--overwrite")
    assert re.search(r"analyse +before", again.out) and not re.search(r"moments +before", again.out)
    assert "general.txt" in Moments(tmp_path / "run" / "moments.safetensors").origin.source
    refused = shell(*words[:-1], 0, *texts, "--output", tmp_path / "other")
    assert (refused.code, refused.err.count("\n"), (tmp_path / "other").exists()) == (2, 1, False)


def test_scale(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    save_adapter(llama_dir, tmp_path / "adapter")
    (tmp_path / "new.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 2)
    (tmp_path / "general.txt").write_text("Nothing in particular.")
    words = ("scale", tmp_path / "adapter", "--data", tmp_path / "new.jsonl", "--keep", tmp_path / "general.txt")
    outcome = shell.done(*words, "--scales", "0.5,1", "--tolerance", 1, "--plot", tmp_path / "scale.png")
    assert "--scale 0.5" in outcome.out
    assert (tmp_path / "scale.png").is_file()
    refused = shell(*words, "--scales", "0,1")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
