"""Whatever is wrong with an input, a command is right or says so in one line, and damages nothing.

`LOKI_HOSTILE_INPUTS=10000` tries more; `python -m tests.hostile.fuzz --inputs 10000` prints them.
"""

import os

import pytest

from tests.programs import run_python


@pytest.mark.slow
def test_no_hostile_input_goes_wrong() -> None:
    inputs = os.environ.get("LOKI_HOSTILE_INPUTS", "150")
    # A process of its own: it forks, and PyTorch's threads do not survive that once they have run.
    done = run_python("-m", "tests.hostile.fuzz", "--inputs", inputs, timeout=1200 + 3 * int(inputs))
    tried = int(done.stdout.splitlines()[-1].split()[1])
    assert tried > 0.8 * int(inputs)
