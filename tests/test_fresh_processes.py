"""Every phase works in a process that has seen no other, for families that no entry names."""

from pathlib import Path

import pytest

from loki.artefacts.positions import write_positions
from loki.models.architectures import LOKI_FAMILIES
from tests.fresh_process import PHASES
from tests.programs import run_python
from tests.tiny_models import save_tiny_model

POSITIONS = [[1, 30], [], [0, 4, 5]]
BY_STRUCTURE = ["olmo3", "smollm3", "granite"]


WITH_EXPERTS = {
    "deepseek_v3": "shared",
    "gemma4_text": "shared",
    "gpt_oss": "all",
    "granitemoehybrid": "shared",
    "lfm2_moe": "dense",
    "llama4": "shared",
    "llama4_text": "all",
    "qwen3_moe": "all",
    "qwen3_next": "shared",
}


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


@pytest.mark.slow
def test_experts(tmp_path: Path) -> None:
    for family, experts in WITH_EXPERTS.items():
        folder = tmp_path / family
        save_tiny_model(folder / "base", family)
        write_positions(folder / "positions.json", [POSITIONS[0], [], []] if experts == "dense" else POSITIONS)
        (folder / "experts").write_text(experts)
    folders = [tmp_path / family for family in WITH_EXPERTS]
    for phase in PHASES:
        run_python("-m", "tests.fresh_process", phase, *folders)
    for phase in ("adapter", "restore_adapter"):
        run_python("-m", "tests.fresh_process", phase, *folders)
