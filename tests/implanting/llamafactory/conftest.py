"""Fixtures of the tests that run LlamaFactory."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def environment() -> Path:
    """`bin` of an environment with LlamaFactory: that of LOKI_LLAMAFACTORY_PYTHON, or `.venv-llamafactory`."""
    named = os.environ.get("LOKI_LLAMAFACTORY_PYTHON")
    folder = Path(named).parent if named else ROOT / ".venv-llamafactory" / "bin"
    if not (folder / "llamafactory-cli").is_file():
        pytest.skip(f"no llamafactory-cli in {folder}: `make llamafactory` sets it up (`make test-slow` does so)")
    return folder
