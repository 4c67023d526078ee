"""A LoKI model and data to train it on."""

import json
from pathlib import Path

import pytest

from loki import create_loki_model
from loki.artefacts.positions import write_positions

POSITIONS = [[1, 30], [], [0, 4, 5]]


@pytest.fixture
def loki_dir(llama_dir: Path, tmp_path: Path) -> Path:
    write_positions(tmp_path / "positions.json", POSITIONS)
    return create_loki_model(
        model_name=llama_dir, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki"
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    records = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(4) for b in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "train.jsonl"
