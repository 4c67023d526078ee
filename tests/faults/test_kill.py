"""Kill -9 in the middle of a change of files: the next run of the same command removes what was left."""

import os

import pytest

from tests.programs import run_python

pytestmark = pytest.mark.slow

FAULTS = os.environ.get("LOKI_FAULTS", "1")  # of every command, anew and over an output
COMMANDS = ("select", "create", "adapter", "suppress", "restore", "restore-adapter", "merge", "merge-adapters")
COMMANDS += ("export-lora", "moments", "analyse", "train")  # what `run` does lasts too long


def test_the_next_run_cleans_up() -> None:
    tried = run_python("-m", "tests.faults.kill", FAULTS, *COMMANDS).stdout
    assert int(tried.splitlines()[-1].split()[0]) >= 2 * len(COMMANDS)  # libraries write lines before it
