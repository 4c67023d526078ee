import json
from pathlib import Path

import numpy as np
import pytest

from tests.artefacts.scores_files import write_scores
from tests.cli.running import Shell

PNG = b"\x89PNG"


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return write_scores(tmp_path / "scores.h5", np.random.default_rng(0).normal(size=(6, 3, 32)).astype(np.float32))


@pytest.mark.parametrize("kind", ["layers", "scores", "overlap", "stability"])
def test_pictures_of_scores(shell: Shell, scores: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "picture.png"
    shell.done("plot", kind, scores, "--output", output)
    assert output.read_bytes().startswith(PNG)


def test_no_quota_is_not_the_default(shell: Shell, scores: Path) -> None:
    for kind in ("layers", "stability", "overlap"):
        refused = shell("plot", kind, scores, "--quota", 0, "--output", "picture.png")
        assert (refused.code, "quota 0.0 is out of range" in refused.err) == (2, True), refused.err


def test_pictures_of_other_files(shell: Shell, tmp_path: Path) -> None:
    for name, rows in (("a", [[0], [1]]), ("b", [[0], [2]])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    shell.done("plot", "overlap", tmp_path / "a.json", tmp_path / "b.json", "--output", tmp_path / "o.svg")
    assert "<svg" in (tmp_path / "o.svg").read_text()
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 2.0}]}))
    shell.done("plot", "loss", trained, "--output", tmp_path / "l.png")


def test_ablation_and_its_picture(shell: Shell, llama_dir: Path, scores: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words. " * 20)
    curves = tmp_path / "curves.json"
    words = ("ablate", llama_dir, "--scores", scores, "--quotas", "10,30", "--text", text, "--output", curves)
    outcome = shell.done(*words)
    assert "Absolute scores" in outcome.out
    assert len(json.loads(curves.read_text())["points"]) == 2 * (4 + 3)
    assert shell(*words).code == 2  # the output exists
    shell.done("plot", "ablation", curves, "--output", tmp_path / "picture.pdf")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pie", "a.h5", "--output", "a.png"], "'pie' is not known"),
        (["layers", "a.h5", "--output", "a.gif"], "names no picture"),
        (["layers", "a.h5", "b.h5", "--output", "a.png"], "from one file, and 2"),
        (["layers", "missing.h5", "--output", "a.png"], "missing.h5 does not exist"),
        (["loss", "missing", "--output", "a.png"], "holds no trainer_state.json"),
    ],
)
def test_bad_input(shell: Shell, words: list[str], message: str) -> None:
    outcome = shell("plot", *words)
    assert outcome.code == 2
    assert message in outcome.err
