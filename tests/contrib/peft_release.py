"""A copy of the installed release of PEFT in which LoKI is a method, as the pull request would make it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest

from tests.programs import ROOT

PROPOSAL = ROOT / "contrib" / "peft"


def make_release(folder: Path) -> Path:
    """Copy PEFT to `folder`, register LoKI in it and add the tuner; the folder to import it from."""
    if shutil.which("git") is None:
        pytest.skip("there is no git to apply the patch with")
    source = folder / "src"
    shutil.copytree(Path(peft.__file__).parent, source / "peft", ignore=shutil.ignore_patterns("__pycache__"))
    # Releases differ around the lines that are added, so little of what stands around them is compared.
    patch = ["git", "apply", "-C1", str(PROPOSAL / "registration.patch")]
    subprocess.run(patch, cwd=folder, check=True, capture_output=True)
    shutil.copytree(PROPOSAL / "src", source, dirs_exist_ok=True)
    return source


def run_with(release: Path, *words: object, cwd: Path) -> str:
    """Run Python with that PEFT and without LoKI; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(release), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
