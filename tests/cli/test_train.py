"""`loki train`: which backend takes which option."""

import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loki.artefacts.positions import write_positions
from loki.implanting.training.rows import ROWS_FILE
from tests.cli.running import Shell
from tests.programs import run_python, start_python


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


@pytest.mark.slow
def test_interrupted_or_killed_it_goes_on(llama_dir: Path, tmp_path: Path) -> None:
    write_positions(tmp_path / "positions.json", [[1], [], [2]])
    (tmp_path / "d.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 8)
    options = ("--max-steps", 1200, "--save-steps", 100, "--learning-rate", 1e-3, "--batch-size", 1)
    shared = ("--positions", tmp_path / "positions.json", "--data", tmp_path / "d.jsonl", *options)
    words = ("-m", "loki", "train", llama_dir, *shared, "--output")
    output = tmp_path / "parts"
    for stop, checkpoint in ((signal.SIGINT, 100), (signal.SIGKILL, 400)):
        process = start_python(*words, output)
        deadline = time.monotonic() + 300
        while not (output / f"checkpoint-{checkpoint}" / ROWS_FILE).is_file() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(stop)
        said = process.communicate(timeout=180)[1]
        if stop is signal.SIGINT:
            assert process.returncode == 130
            assert said.splitlines()[-1] == "error: interrupted: run the same command again to continue"
    assert "resuming from checkpoint-" in run_python(*words, output).stdout
    run_python(*words, tmp_path / "whole")
    parts, whole = (load_file(folder / "model.safetensors") for folder in (output, tmp_path / "whole"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
