"""`loki adapter` makes an adapter that PEFT loads and that changes nothing."""

from pathlib import Path

from loki.artefacts.positions import write_positions
from loki.implanting.peft.adapter_files import read_adapter
from tests.cli.running import Shell


def test_adapter(shell: Shell, llama_dir: Path, tmp_path: Path) -> None:
    write_positions(tmp_path / "positions.json", [[1, 30], [], [0]])
    output = tmp_path / "adapter"
    words = ("adapter", llama_dir, "--positions", tmp_path / "positions.json", "--output", output)
    assert str(output) in shell.done(*words).out.replace("\n", "")
    saved = read_adapter(output)
    assert saved.config.row_lists == [[1, 30], [], [0]]
    assert not any(layer.matrix.any() for layer in saved.adapted)
    assert "exists already" in shell(*words).err
    shell.done(*words, "--rank", 2, "--overwrite")
    assert read_adapter(output).config.rank == 2
