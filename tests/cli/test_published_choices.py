"""`--published` gives the paper's own choices, whatever the defaults are."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from tests.cli.running import Shell


@pytest.mark.parametrize(
    "words",
    [
        ("select", "scores.h5", "--quota", 10, "--published", "--by", "absolute"),
        ("select", "scores.h5", "--quota", 10, "--published", "--strategy", "random"),
        ("analyse", "model", "--data", "mmlu", "--published", "--definition", "paper"),
        ("analyse", "model", "--data", "mmlu", "--published", "--steps", 9),
        ("analyse", "model", "--data", "mmlu", "--published", "--absolute"),
        ("run", "model", "--data", "x", "--calibration", "y", "--published", "--protect", 0.3),
        ("run", "model", "--data", "x", "--calibration", "y", "--published", "--learning-rate", 1e-3),
        ("run", "model", "--data", "x", "--calibration", "y", "--published", "--keep", "new"),
        ("run", "model", "--data", "x", "--calibration", "y", "--published", "--loss", "dft"),
    ],
)
def test_other_choices_are_refused(shell: Shell, words: tuple[object, ...]) -> None:
    refused = shell(*words)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--published and --" in refused.err


def test_scores_and_rows(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n{"prompt": "two and two"}\n')
    analyse = ("analyse", llama_dir, "--data", tmp_path / "questions.jsonl")
    shell.done(*analyse, "--published", "--definition", "captum", "--output", tmp_path / "published.h5")
    explicit = ("--definition", "captum", "--steps", 7, "--ig-method", "riemann_trapezoid", "--quantity", "probability")
    shell.done(*analyse, *explicit, "--output", tmp_path / "explicit.h5")
    with h5py.File(tmp_path / "published.h5") as first, h5py.File(tmp_path / "explicit.h5") as second:
        np.testing.assert_array_equal(first["dataset"][:], second["dataset"][:])
    select = ("select", tmp_path / "published.h5", "--quota", 25)
    shell.done(*select, "--published", "--output", tmp_path / "published.json")
    shell.done(*select, "--strategy", "layer_balanced", "--by", "signed", "--output", tmp_path / "explicit.json")
    assert (tmp_path / "published.json").read_bytes() == (tmp_path / "explicit.json").read_bytes()


def test_run(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n')
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 4)
    files = ("--data", tmp_path / "train.jsonl", "--calibration", tmp_path / "questions.jsonl")
    # Whatever a configuration says that is not the paper's.
    other = {"attribution": {"absolute": True, "position": -2}, "levers": {"keep": "new"}, "training": {"loss": "dft"}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    words = ("--quota", 30, "--max-steps", 2, "--published", "--config", tmp_path / "other.yaml")
    shell.done("run", llama_dir, *files, *words, "--output", tmp_path / "run")
    settings = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert settings["protect"] == 0
    assert settings["selection"] == {"strategy": "layer_balanced", "by": "signed", "seed": 0}
    assert (settings["attribution"]["definition"], settings["training"]["learning_rate"]) == ("captum", "published")
    assert (settings["attribution"]["absolute"], settings["attribution"]["position"]) == (False, -1)
    assert (settings["levers"]["keep"], settings["training"]["loss"]) == (None, "nll")
    assert "protect" not in json.loads((tmp_path / "run" / "loki_model" / "config.json").read_text())
    record = json.loads((tmp_path / "run" / "trained" / "training.json").read_text())
    assert record["effective_learning_rate"] == pytest.approx(3e-4 / (100 * 9 / 32))  # 9 of 32 rows
    assert not (tmp_path / "run" / "moments.safetensors").exists()
