"""Commands that are disturbed lose nothing, say one line, and succeed the next time."""

import os

import pytest

from tests.faults import disturb
from tests.programs import run_python

pytestmark = pytest.mark.slow

FAULTS = os.environ.get("LOKI_DISTURBANCES", "22")  # two of every kind, where file systems may be mounted
# Not a limit on the size of files (`ulimit -f`): HDF5 does not always survive that.
KINDS = [kind for kind in disturb.FAULTS if kind != "a limit on files"]
COMMANDS = ("select", "create", "restore-adapter", "merge", "analyse", "train")  # files, directories, work folders


def test_disturbed_commands() -> None:
    said = run_python(
        "-m", "tests.faults.disturb", "--faults", FAULTS, "--kinds", *KINDS, "--commands", *COMMANDS
    ).stdout
    assert said.splitlines()[-1] == f"{FAULTS} faults tried, 0 wrong", said[-6000:]
