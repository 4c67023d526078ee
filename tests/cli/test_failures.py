"""A full disk, forbidden places and too little memory: one line with advice, nothing half written."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loki.cli.failures import explain
from tests.cli.running import Shell
from tests.cli.test_phases_by_hand import TRAINING, write_jsonl


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    mount = tmp_path / "full"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system here")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    path = tmp_path / "positions.json"
    path.write_text("[[1, 2], [3, 4], [5, 6]]")
    return path


def check_refused(shell: Shell, disk: Path, *words: object) -> None:
    outcome = shell(*words)
    assert outcome.code == 2
    assert "No space left on device" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    assert not list(disk.rglob("*.tmp"))


def test_analyse(shell: Shell, llama_dir: Path, full_disk: Path, tmp_path: Path) -> None:
    many = [{"input_ids": [5, 20, index]} for index in range(3, 103)]
    data = write_jsonl(tmp_path / "questions.jsonl", many)
    check_refused(shell, full_disk, "analyse", llama_dir, "--data", data, "--output", full_disk / "scores.h5")


@pytest.mark.parametrize("command", ["create", "suppress"])
def test_directories(command: str, shell: Shell, llama_dir: Path, full_disk: Path, positions: Path) -> None:
    output = full_disk / "model"
    check_refused(shell, full_disk, command, llama_dir, "--positions", positions, "--output", output)
    assert not output.exists()


def test_train(shell: Shell, llama_dir: Path, full_disk: Path, positions: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", TRAINING)
    words = ("train", llama_dir, "--positions", positions, "--data", data, "--max-steps", 1)
    check_refused(shell, full_disk, *words, "--output", full_disk / "trained")


def test_safetensors_and_torch_do_not_say_enospc(full_disk: Path) -> None:
    tensor = torch.zeros(100_000)
    for save in (
        lambda: save_file({"a": tensor}, full_disk / "a.safetensors"),
        lambda: torch.save(tensor, full_disk / "a.pt"),
    ):
        with pytest.raises(Exception) as raised:
            save()
        assert "No space left" in str(explain(raised.value))
        for path in full_disk.iterdir():
            path.unlink()


def test_forbidden_place() -> None:
    assert explain(PermissionError(13, "Permission denied", "/out")) == (
        "Permission denied: /out: check its permissions or choose another path"
    )


@pytest.mark.parametrize("name", ["ENOTDIR", "EISDIR", "EEXIST", "EBUSY", "EROFS", "ENOENT"])
def test_unusable_place(name: str) -> None:
    number = getattr(errno, name)
    line = str(explain(OSError(number, os.strerror(number), "/no-such-folder/out")))
    assert line.startswith(f"{os.strerror(number)}: /no-such-folder/out: ") and "choose another" in line


def test_a_file_that_should_have_been_there_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "absent").read_text()
    assert explain(raised.value) is None


@pytest.mark.parametrize(
    ("command", "place", "problem"),
    [
        ("suppress", "file/x", "file is a file"),
        ("suppress", "file/x/y", "file is a file"),
        ("select", "file/x", "file is a file"),
        ("select", "empty", "is a directory"),
        ("select", "to-empty", "is a directory"),
    ],
)
def test_outputs_that_cannot_be(
    shell: Shell, llama_dir: Path, positions: Path, tmp_path: Path, command: str, place: str, problem: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "to-empty").symlink_to(tmp_path / "empty")
    with h5py.File(tmp_path / "scores.h5", "w") as file:
        file.create_dataset("dataset", data=np.random.default_rng(0).normal(size=(4, 3, 32)).astype(np.float32))
    given = {"suppress": (llama_dir, "--positions", positions), "select": (tmp_path / "scores.h5", "--quota", 10)}
    outcome = shell(command, *given[command], "--output", tmp_path / place)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert problem in outcome.err


def test_out_of_memory_names_what_helps() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError(), raised.value):
        line = str(explain(error))
        assert all(advice in line for advice in ("--batch-size", "--gradient-checkpointing", "rank"))


@pytest.mark.parametrize(
    ("quoted", "said"), [("os error 27", "File too large"), ("errno = 30", "Read-only file system")]
)
def test_libraries_quote_the_system(quoted: str, said: str) -> None:
    line = str(explain(RuntimeError(f"Error while serializing: I/O error: something ({quoted})")))
    assert line.startswith(f"{said}: while writing: ")
    assert explain(RuntimeError("No such file (os error 2)")) is None  # it was to be read


def test_causes_count() -> None:
    try:
        try:
            raise OSError(28, "No space left on device", "/out")
        except OSError as error:
            raise RuntimeError("writing failed") from error
    except RuntimeError as error:
        assert "/out" in str(explain(error))


def test_a_bug_is_not_explained() -> None:
    assert explain(ZeroDivisionError("division by zero")) is None
