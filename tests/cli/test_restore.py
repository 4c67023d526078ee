"""The options of `loki restore`, and `loki suppress`, which writes the same kind of directory."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.running import Shell

POSITIONS = "[[1, 2], [3], [4]]"
DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    path = tmp_path / "positions.json"
    path.write_text(POSITIONS)
    return path


@pytest.fixture
def unchanged(shell: Shell, llama_dir: Path, positions: Path, tmp_path: Path) -> Path:
    """A LoKI model directory that was never trained."""
    shell.done("create", llama_dir, "--positions", positions, "--output", tmp_path / "loki")
    return tmp_path / "loki"


def test_unchanged_models_need_an_option(shell: Shell, llama_dir: Path, unchanged: Path, tmp_path: Path) -> None:
    refused = shell("restore", unchanged, "--output", tmp_path / "restored")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--allow-unchanged" in refused.err
    shell.done("restore", unchanged, "--output", tmp_path / "restored", "--allow-unchanged")
    shell.done("verify", llama_dir, tmp_path / "restored", "--positions", tmp_path / "positions.json")


def test_base_and_positions_are_checked(
    shell: Shell, llama_dir: Path, qwen2_dir: Path, unchanged: Path, positions: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_text("[[0], [3], [4]]")
    words = ("restore", unchanged, "--output", tmp_path / "restored", "--allow-unchanged")
    for given, problem in [
        (("--base", qwen2_dir), "whose weights are others"),
        (("--positions", tmp_path / "other.json"), "other.json is not the one that"),
    ]:
        refused = shell(*words, *given)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert problem in refused.err
    outcome = shell.done(*words, "--base", llama_dir, "--positions", positions)
    assert outcome.out == f"Restored model: {tmp_path / 'restored'}\n"


def test_suppress(shell: Shell, llama_dir: Path, positions: Path, tmp_path: Path) -> None:
    outcome = shell.done("suppress", llama_dir, "--positions", positions, "--output", tmp_path / "zeroed")
    assert outcome.out == f"Suppressed model: {tmp_path / 'zeroed'}\n"
    before, after = (load_file(path / "model.safetensors") for path in (llama_dir, tmp_path / "zeroed"))
    changed = [(before[DOWN.format(layer)] != after[DOWN.format(layer)]).any(dim=1) for layer in range(3)]
    assert [rows.nonzero().flatten().tolist() for rows in changed] == [[1, 2], [3], [4]]
    assert not after[DOWN.format(0)][[1, 2]].any()
    shell.done("verify", llama_dir, tmp_path / "zeroed", "--positions", positions)
