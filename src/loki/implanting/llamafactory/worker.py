"""What runs in LlamaFactory's environment: `python -m loki.implanting.llamafactory.worker RUN_DIRECTORY/train.yaml`.

Not `llamafactory-cli`, which under torchrun starts a launcher of its own and so loses what was imported before.
"""

import os
import sys
import threading
import traceback
from pathlib import Path

import yaml
from llamafactory.train.tuner import run_exp

from loki.errors import LokiError, one_line, out_of_memory
from loki.implanting.llamafactory.levers import add_levers
from loki.implanting.llamafactory.patch import patch_llamafactory
from loki.implanting.llamafactory.run_directory import RunDirectory
from loki.implanting.training.output import memory_advice


def main(configuration: Path) -> int:
    """Run LlamaFactory on its configuration file; an error is written beside it, as one line.

    Returns:
        Exit code: 0, or that of the error.
    """
    try:
        patch_llamafactory()
        add_levers(RunDirectory(configuration.parent))
        run_exp(yaml.safe_load(configuration.read_text(encoding="utf-8")))
    except Exception as error:
        traceback.print_exc()
        RunDirectory(configuration.parent).error.write_text(_message(error), encoding="utf-8")
        return error.exit_code if isinstance(error, LokiError) else LokiError.exit_code
    return 0


def stop_with_parent() -> None:
    """End this process when its standard input closes: the command that started it is gone then, however it ended."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(LokiError.exit_code)

    threading.Thread(target=wait, daemon=True).start()


def _message(error: Exception) -> str:
    if isinstance(error, LokiError):
        return str(error)
    if out_of_memory(error):
        return memory_advice(error)
    return f"LlamaFactory stopped with {type(error).__name__}: {one_line(error)}"


if __name__ == "__main__":
    stop_with_parent()
    sys.exit(main(Path(sys.argv[1])))
