"""`loki train`: which backend takes which option."""

from pathlib import Path

import pytest

from tests.cli.running import Shell


@pytest.mark.parametrize("option", [("--template", "llama3"), ("--processes", "2"), ("--deepspeed",)])
def test_options_of_llamafactory_alone(shell: Shell, tmp_path: Path, option: tuple[str, ...]) -> None:
    refused = shell("train", tmp_path, "--data", tmp_path / "d.jsonl", "--output", tmp_path / "out", *option)
    assert refused.code == 2
    assert "need --backend llamafactory" in refused.err


def test_llamafactory_missing_is_one_line(shell: Shell, tmp_path: Path, llama_dir: Path) -> None:
    words = ("train", llama_dir, "--data", tmp_path / "d.jsonl", "--output", tmp_path / "out")
    refused = shell(*words, "--backend", "llamafactory", "--llamafactory-python", tmp_path / "absent")
    assert refused.code == 2
    assert "make llamafactory" in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_scheduler(shell: Shell, tmp_path: Path, llama_dir: Path) -> None:
    words = ("train", llama_dir, "--data", tmp_path / "d.jsonl", "--output", tmp_path / "out")
    assert "--scheduler steep is not known: use linear" in shell(*words, "--scheduler", "steep").err
