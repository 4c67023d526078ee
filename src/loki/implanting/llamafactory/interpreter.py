"""Finding a Python that has LlamaFactory."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from loki.errors import LokiError

ENVIRONMENT = ".venv-llamafactory"  # made by `make llamafactory`
_PROBE = "import importlib.util as u, sys; sys.exit(not (u.find_spec('llamafactory') and u.find_spec('loki')))"


def find_interpreter(given: Path | None = None) -> Path:
    """The Python to run LlamaFactory with: `given`, else this one, else that of `.venv-llamafactory`.

    That environment is looked for in the working directory, and in the clone that LoKI runs from.

    Raises:
        LokiError: if none of them has LlamaFactory and LoKI.
    """
    if given is None and find_spec("llamafactory") is not None:
        return Path(sys.executable)
    clone = Path(__file__).parents[4]
    folders = [Path.cwd(), *([clone] if (clone / "pyproject.toml").is_file() else [])]
    candidates = [given] if given else [folder / ENVIRONMENT / "bin" / "python" for folder in folders]
    for python in candidates:
        if python.is_file():
            if subprocess.run([python, "-c", _PROBE], capture_output=True).returncode:
                raise LokiError(f"{python} has no LlamaFactory and LoKI: run `make llamafactory`, or name another")
            return python
    raise LokiError(
        f"{given or 'LlamaFactory'} is not there: run `make llamafactory`, or name the Python of an environment that "
        "has LlamaFactory and LoKI with --llamafactory-python"
    )
