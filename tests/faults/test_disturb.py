"""Commands that are disturbed lose nothing, say one line, and succeed the next time."""

import os

import pytest

from tests.programs import run_python

pytestmark = pytest.mark.slow

FAULTS = os.environ.get("LOKI_DISTURBANCES", "24")  # two of every kind, where file systems may be mounted
COMMANDS = ("select", "create", "restore-adapter", "merge", "analyse", "train")  # files, directories, work folders


def test_disturbed_commands() -> None:
    said = run_python("-m", "tests.faults.disturb", "--faults", FAULTS, "--commands", *COMMANDS).stdout
    assert said.splitlines()[-1] == f"{FAULTS} faults tried, 0 wrong", said[-6000:]
