"""Every phase works in a process that has seen no other, for families that no entry names."""

from pathlib import Path

from loki.artefacts.positions import write_positions
from loki.models.architectures import LOKI_FAMILIES
from tests.fresh_process import PHASES
from tests.programs import run_python
from tests.tiny_models import save_tiny_model

POSITIONS = [[1, 30], [], [0, 4, 5]]
BY_STRUCTURE = ["olmo3", "smollm3", "granite"]


def run_phases(families: list[str], folder: Path) -> None:
    folders = [folder / family for family in families]
    for family, made in zip(families, folders, strict=True):
        assert family not in LOKI_FAMILIES
        save_tiny_model(made / "base", family)
        write_positions(made / "positions.json", POSITIONS)
    for phase in PHASES:
        run_python("-m", "tests.fresh_process", phase, *folders)


def test_each_phase_alone(tmp_path: Path) -> None:
    run_phases(BY_STRUCTURE, tmp_path)
