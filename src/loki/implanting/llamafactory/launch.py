"""Starting LlamaFactory, following it, and ending it."""

import json
import subprocess
from pathlib import Path

from rich.progress import Progress, TaskID

from loki.errors import LokiError
from loki.implanting.llamafactory.run_directory import RunDirectory
from loki.implanting.training.output import resume_advice
from loki.system import end_group, start_group

WORKER = "loki.implanting.llamafactory.worker"
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10


def command(python: Path, configuration: Path, *, processes: int | None) -> list[str]:
    """The command that trains: in `processes` processes under torchrun, or plainly where that is None."""
    worker = ["-m", WORKER, str(configuration)]
    if processes is None:
        return [str(python), *worker]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [str(python), *torchrun, *worker]


def launch(words: list[str], run: RunDirectory, output: Path, *, progress: Progress | None = None) -> None:
    """Run LlamaFactory to its end. It prints into the run directory's log.

    Args:
        words: the command.
        run: the run directory.
        output: where LlamaFactory writes checkpoints and its record of steps.
        progress: where to show how far it has come (default: nowhere).

    Raises:
        LokiError: if it failed, with its error in one line.
    """
    run.error.unlink(missing_ok=True)
    steps = output / "trainer_log.jsonl"
    steps.unlink(missing_ok=True)
    with run.log.open("ab") as log:
        # Its own group, so that Ctrl-C reaches this process alone, which then ends all of them. When this one dies
        # without a chance to do so, they see the pipe close.
        process = start_group(words, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        task = progress.add_task("training", total=None) if progress else None
        try:
            while process.poll() is None:
                _wait(process)
                if progress is not None and task is not None:
                    _show(steps, progress, task)
        finally:
            if process.poll() is None:
                end_group(process, _GRACE_SECONDS)
            if process.stdin is not None:
                process.stdin.close()
            if progress is not None and task is not None:
                progress.remove_task(task)
    if process.returncode:
        raise LokiError(f"{_error(run)} (log: {run.log}{resume_advice(output)})")


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _show(steps: Path, progress: Progress, task: TaskID) -> None:
    if not steps.is_file():
        return
    for line in reversed(steps.read_text(encoding="utf-8").splitlines()):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # being written
            continue
        loss = f", loss {entry['loss']:.4f}" if "loss" in entry else ""
        progress.update(
            task, completed=entry["current_steps"], total=entry["total_steps"], description=f"training{loss}"
        )
        return


def _error(run: RunDirectory) -> str:
    if run.error.is_file():
        return run.error.read_text(encoding="utf-8")
    printed = [line.strip() for line in run.log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(printed) if line), "it printed nothing")
    return f"LlamaFactory stopped without an error message; its last line was: {last[:200]}"
