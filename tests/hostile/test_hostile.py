"""Whatever is wrong with an input, a command is right or says so in one line, in time, and damages nothing.

`LOKI_HOSTILE_INPUTS=10000` tries more; `python -m tests.hostile.fuzz --inputs 10000` prints them.
"""

import os

import pytest

from tests.hostile.kinds import KINDS
from tests.programs import run_python

pytestmark = pytest.mark.slow

INPUTS = int(os.environ.get("LOKI_HOSTILE_INPUTS", 2 * len(KINDS)))  # of all kinds together; the same ones every time


def test_no_hostile_input_goes_wrong() -> None:
    # A process of its own: it forks, and PyTorch's threads do not survive that once they have run.
    done = run_python("-m", "tests.hostile.fuzz", "--inputs", INPUTS, timeout=1200 + 3 * INPUTS)
    *kinds, total = [line for line in done.stdout.splitlines() if line.endswith(" wrong")]
    tried = {line[:26].rstrip(): int(line.split()[-4]) for line in kinds}
    assert tried.keys() == {kind.name for kind in KINDS} and all(tried.values())
    assert total.split()[-2:] == ["0", "wrong"] and int(total.split()[-4]) > 0.8 * INPUTS
