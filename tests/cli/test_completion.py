"""The shell completes commands and options."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "expected"),
    [("exp", "export-lora"), ("mer", "merge merge-adapters"), ("verify --posi", "--positions")],
)
def test_completed_words(words: str, expected: str, tmp_path: Path) -> None:
    # What the shell's function asks for, without a shell.
    asked = {
        "COMP_WORDS": f"loki {words}",
        "COMP_CWORD": str(len(words.split())),
        "_LOKI_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-m", "loki"], cwd=tmp_path, env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert done.stdout.split() == expected.split()


def test_the_function_for_the_shell_asks_in_this_way(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "loki", "--show-completion", "bash"]
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "_LOKI_COMPLETE=complete_bash" in done.stdout
    assert "_loki_completion loki" in done.stdout
