"""Python programs in processes of their own that have run nothing, without the seconds that their imports take.

`run_python("-m", "loki", "train", ...)` is `subprocess.run` of Python with these words. The process is forked from a
server (`multiprocessing`'s) which has imported the libraries, and nothing of LoKI. What depends on when libraries are
imported, on their environment variables or on another interpreter needs `subprocess`.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ["torch", "transformers.trainer", "peft", "trl.trainer.sft_trainer", "datasets", "accelerate", "h5py"]

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(LIBRARIES)


class Program:
    """A program that was started, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, words: tuple[object, ...], folder: Path, environment: dict[str, str]) -> None:
        self.args = [*map(str, words)]
        self._said = Path(tempfile.mkdtemp(prefix="program-"))
        arguments = (self.args, self._said, str(folder), environment)
        self._process = server.Process(target=_run, args=arguments)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote to its standard output and error."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.args, timeout or 0, *self._texts())
        return self._texts()

    def wait(self, code: int, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end, which must be exit code `code`."""
        out, err = self.communicate(timeout)
        assert self.returncode == code, f"{self.args} exited with {self.returncode}:\n{out[-3000:]}{err[-6000:]}"
        return subprocess.CompletedProcess(self.args, code, out, err)

    def _texts(self) -> tuple[str, str]:
        out, err = ((self._said / name).read_text() for name in ("out", "err"))
        return out, err


def start_python(*words: object, cwd: Path = ROOT, environment: Mapping[str, str] = os.environ) -> Program:
    """Start Python with these words: `-m MODULE ...` or `-c CODE ...`."""
    return Program(words, cwd, {**environment})


def run_python(
    *words: object, cwd: Path = ROOT, code: int = 0, timeout: float = 600, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """The same to its end, which must be exit code `code`."""
    return start_python(*words, cwd=cwd, environment=environment).wait(code, timeout)


def run_together(
    processes: int,
    *words: object,
    cwd: Path = ROOT,
    code: int = 0,
    timeout: float = 600,
    environment: Mapping[str, str] = os.environ,
) -> list[subprocess.CompletedProcess[str]]:
    """The same in processes that work together, with the variables that a launcher sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common = {**environment, **address, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes))
    programs = [start_python(*words, cwd=cwd, environment={**common, **rank}) for rank in ranks]
    return [program.wait(code, timeout) for program in programs]


def _run(words: list[str], said: Path, folder: str, environment: dict[str, str]) -> None:
    """What Python does with its command line, in a forked process that then ends without anything of its parent's."""
    assert "loki" not in sys.modules
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    kind, program, *arguments = words
    more = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [folder, *filter(None, more)]
    code = 1
    try:
        if kind == "-m":
            sys.argv = [program, *arguments]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [kind, *arguments]
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            code = exit_.code or 0
        else:
            print(exit_.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
