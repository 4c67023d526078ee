"""The run directory holds all that LlamaFactory reads."""

import json
from pathlib import Path

import yaml

from loki.implanting.llamafactory.run_directory import RunDirectory


def test_files(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "llamafactory")
    run.write({"learning_rate": 1e-5, "packing": False}, {"train": {"file_name": "/data"}}, {"zero": 2})
    assert yaml.safe_load(run.configuration.read_text()) == {"learning_rate": 1e-5, "packing": False}
    assert json.loads((run.path / "dataset_info.json").read_text()) == {"train": {"file_name": "/data"}}
    assert json.loads(run.deepspeed.read_text()) == {"zero": 2}


def test_a_second_writing_replaces_the_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for steps in (1, 2):
        run.write({"max_steps": steps}, {}, None)
    assert yaml.safe_load(run.configuration.read_text()) == {"max_steps": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset_info.json", "train.yaml"]
