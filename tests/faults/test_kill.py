"""Kill -9 in the middle of a change of files: the next run of the same command removes what was left."""

import os

import pytest

from tests.programs import run_python

pytestmark = pytest.mark.slow

FAULTS = os.environ.get("LOKI_FAULTS", "1")  # of every command, anew and over an output


def test_the_next_run_cleans_up() -> None:
    tried = run_python("-m", "tests.faults.kill", FAULTS).stdout
    assert int(tried.splitlines()[-1].split()[0]) >= 18  # libraries write lines before it
