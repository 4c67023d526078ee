"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # of programs that tests start: sums over threads round differently

from tests.programs import ROOT
from tests.tiny_models import save_tiny_model

torch.set_num_threads(1)  # several test processes share the cores
settings.register_profile("loki", deadline=None)  # a busy machine is not a failure
settings.load_profile("loki")


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with tokenizer. Do not change it."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def qwen2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Qwen2 with tokenizer. Do not change it."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-qwen2", "qwen2")


@pytest.fixture(scope="session")
def environment() -> Path:
    """`bin` of an environment with LlamaFactory: that of LOKI_LLAMAFACTORY_PYTHON, or `.venv-llamafactory`."""
    named = os.environ.get("LOKI_LLAMAFACTORY_PYTHON")
    folder = Path(named).parent if named else ROOT / ".venv-llamafactory" / "bin"
    if not (folder / "llamafactory-cli").is_file():
        pytest.skip(f"no llamafactory-cli in {folder}: `make llamafactory` sets it up (`make test-slow` does so)")
    return folder
