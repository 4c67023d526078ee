"""Starting, following and ending the process that trains; plain Python programs stand in for LlamaFactory."""

import json
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from rich.progress import Progress

from loki.errors import LokiError
from loki.implanting.llamafactory import launch as launching
from loki.implanting.llamafactory.launch import WORKER, command, launch
from loki.implanting.llamafactory.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "llamafactory").mkdir()
    return RunDirectory(tmp_path / "llamafactory")


def start(run: RunDirectory, code: str, progress: Progress | None = None) -> None:
    launch([sys.executable, "-c", code], run, run.path.parent, progress=progress)


def test_command() -> None:
    python, file = Path("/env/bin/python"), Path("/run/train.yaml")
    assert command(python, file, processes=None) == ["/env/bin/python", "-m", WORKER, "/run/train.yaml"]
    several = command(python, file, processes=2)
    assert several[:3] == ["/env/bin/python", "-m", "torch.distributed.run"]
    assert several[-5:] == ["--nproc_per_node", "2", "-m", WORKER, "/run/train.yaml"]


def test_what_it_prints_goes_to_the_log(run: RunDirectory, capfd: pytest.CaptureFixture[str]) -> None:
    start(run, "import sys; print('out'); print('err', file=sys.stderr)")
    assert sorted(run.log.read_text().split()) == ["err", "out"]
    assert capfd.readouterr() == ("", "")


def test_its_error_is_one_line(run: RunDirectory) -> None:
    with pytest.raises(LokiError) as raised:
        start(run, f"open({str(run.error)!r}, 'w').write('no rows'); raise SystemExit(2)")
    assert str(raised.value) == f"no rows (log: {run.log})"


def test_the_last_line_where_it_left_no_error(run: RunDirectory) -> None:
    run.error.write_text("of an earlier run")
    with pytest.raises(LokiError, match="Killed"):
        start(run, "print('loading'); print('Killed'); print(); raise SystemExit(1)")


def test_the_checkpoint_to_continue_from_is_named(run: RunDirectory) -> None:
    for step in (2, 10):
        (run.path.parent / f"checkpoint-{step}").mkdir()
    with pytest.raises(LokiError, match="checkpoint-10"):
        start(run, "raise SystemExit(1)")


def test_progress_follows_its_record_of_steps(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_POLL_SECONDS", 0.05)
    seen = []

    class Watched(Progress):
        def update(self, *args: object, **fields: object) -> None:
            seen.append((fields["completed"], fields["total"], fields["description"]))

    steps = run.path.parent / "trainer_log.jsonl"
    entry = json.dumps({"current_steps": 3, "total_steps": 8, "loss": 1.5})
    start(
        run,
        f"import time; open({str(steps)!r}, 'w').write({entry!r} + '\\n{{'); time.sleep(0.5)",
        Watched(console=Console(quiet=True)),
    )
    assert set(seen) == {(3, 8, "training, loss 1.5000")}


def test_an_interruption_ends_all_its_processes(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    children = run.path / "pids"
    code = (
        "import os, subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(children)!r} + '.tmp', 'w').write(f'{{os.getpid()}} {{child.pid}}');"
        f"os.rename({str(children)!r} + '.tmp', {str(children)!r}); time.sleep(60)"
    )

    def interrupt(_: object) -> None:
        deadline = time.monotonic() + 30
        while not children.is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(run, code)
    gone = [int(number) for number in children.read_text().split()]
    deadline = time.monotonic() + 30
    while any(_runs(number) for number in gone) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(number) for number in gone)


@pytest.mark.slow
def test_its_standard_input_closes_with_this_process(run: RunDirectory) -> None:
    code = "import sys; sys.stdin.read(); print('alone')"
    program = (
        "import sys; from pathlib import Path; from loki.implanting.llamafactory.launch import launch;"
        "from loki.implanting.llamafactory.run_directory import RunDirectory;"
        f"path = Path({str(run.path)!r}); launch([sys.executable, '-c', {code!r}], RunDirectory(path), path.parent)"
    )
    process = psutil.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 240
    while not run.log.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    while len(process.children()) == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    while run.log.read_text() != "alone\n" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run.log.read_text() == "alone\n"


def _runs(number: int) -> bool:
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
