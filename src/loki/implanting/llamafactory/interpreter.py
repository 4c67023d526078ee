"""Finding a Python that has LlamaFactory."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from loki.errors import LokiError

ENVIRONMENT = ".venv-llamafactory"  # made by `make llamafactory`
VARIABLE = "LOKI_LLAMAFACTORY_PYTHON"
_PROBE = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if not importlib.util.find_spec(name)))"


def find_interpreter(given: Path | None = None, *, deepspeed: bool = False) -> Path:
    """The Python to run LlamaFactory with: `given`, else `$LOKI_LLAMAFACTORY_PYTHON`, this one, `.venv-llamafactory`'s.

    That environment is looked for in the working directory, and in the clone that LoKI runs from.

    Args:
        given: what the user wants.
        deepspeed: whether DeepSpeed is needed too.

    Raises:
        LokiError: if it lacks LlamaFactory, LoKI or DeepSpeed.
    """
    named = os.environ.get(VARIABLE)
    python = _candidate(given or (Path(named) if named else None))
    needed = ["llamafactory", "loki", *(["deepspeed"] if deepspeed else [])]
    probed = subprocess.run([python, "-c", _PROBE, *needed], capture_output=True, text=True)
    if probed.returncode:
        raise LokiError(f"{python} does not run as Python: name another with --llamafactory-python")
    if missing := probed.stdout.split():
        raise LokiError(
            f"{python} has no {', '.join(missing)}: run `make llamafactory`"
            + (f" and `uv pip install --python {python} deepspeed`" if "deepspeed" in missing else "")
            + ", or name another with --llamafactory-python"
        )
    return python


def _candidate(given: Path | None) -> Path:
    if given is None and find_spec("llamafactory") is not None:
        return Path(sys.executable)
    clone = Path(__file__).parents[4]
    folders = [Path.cwd(), *([clone] if (clone / "pyproject.toml").is_file() else [])]
    candidates = [given] if given else [folder / ENVIRONMENT / "bin" / "python" for folder in folders]
    for python in candidates:
        if os.access(python, os.X_OK) and python.is_file():
            return python
    raise LokiError(
        f"{given or 'LlamaFactory'} is not there: run `make llamafactory`, or name the Python of an environment that "
        "has LlamaFactory and LoKI with --llamafactory-python"
    )
