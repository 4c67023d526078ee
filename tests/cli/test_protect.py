"""`loki moments` and `--protect` as commands."""

import json
from pathlib import Path

from loki.artefacts.positions import write_positions
from loki.implanting.directions import DIRECTIONS_FILE, read_directions
from tests.cli.running import Shell


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
