"""What commands say: text, one JSON object, a log file, or nothing; and how far they have come."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

import loki
from loki.cli import progress as progress_module
from loki.cli.output import Speaker
from loki.cli.progress import ProgressLines, _Bars
from tests.cli.running import Shell
from tests.faults.children import Child


@pytest.fixture
def words(tmp_path: Path, llama_dir: Path) -> list[object]:
    (tmp_path / "positions.json").write_text("[[1, 2], [], [3]]")
    return ["create", llama_dir, "--positions", tmp_path / "positions.json", "--output", tmp_path / "made [x]"]


def test_json_is_alone_on_standard_output(shell: Shell, words: list[object], tmp_path: Path) -> None:
    outcome = shell.done(*words, "--json")
    assert json.loads(outcome.out) == {"command": "create", "exit_code": 0, "output": str(tmp_path / "made [x]")}
    assert outcome.err == f"LoKI model: {tmp_path / 'made [x]'}\n"
    refused = shell("--json", *words)
    told = json.loads(refused.out)
    assert (refused.code, told["exit_code"]) == (2, 2)
    assert refused.err == f"error: {told['error']}\n"
    assert shell.done(*words, "--overwrite").out.startswith("LoKI model")


def test_quiet_says_nothing_but_errors(shell: Shell, words: list[object]) -> None:
    outcome = shell.done("--quiet", *words)
    assert (outcome.out, outcome.err) == ("", "")
    assert "exists already" in shell(*words, "--quiet").err
    assert "LoKI model" in shell.done(*words, "--overwrite").out


def test_log_file_keeps_what_was_said(shell: Shell, words: list[object], tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    shell.done(*words, "--log-file", log)
    shell(*words, f"--log-file={log}")
    said = re.fullmatch(
        r"\d{4}-\d\d-\d\d [\d:]{8} LoKI model: (.+)\n\d{4}.* error: .+ exists already.*\n", log.read_text()
    )
    assert said is not None
    assert said[1] == str(tmp_path / "made [x]")


def test_log_file_that_cannot_be_written(shell: Shell, words: list[object], tmp_path: Path) -> None:
    refused = shell(*words, "--log-file", tmp_path)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--log-file" in refused.err
    assert "--log-file" in shell("select", "--log-file").err
    assert not (tmp_path / "made [x]").exists()


def test_version(shell: Shell) -> None:
    assert shell.done("--version").out == f"loki {loki.__version__}\n"


def test_progress_without_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    said = io.StringIO()
    lines = ProgressLines(Console(file=said, width=200))
    task = lines.add_task("training", total=200)
    for _ in range(200):
        clock[0] += 0.5
        lines.advance(task)
    printed = said.getvalue().splitlines()
    assert printed[0] == "training 10 of 200 (5%), 2.0 a second, 0:01:35 left"
    assert len(printed) == 20
    said.truncate(0)
    slow = lines.add_task("analysing", total=10_000, completed=100)
    for _ in range(5):
        clock[0] += 20
        lines.update(slow, advance=1)
    assert [line.split(",")[0].strip("\0") for line in said.getvalue().splitlines()] == [
        "analysing 102 of 10000 (1%)",
        "analysing 104 of 10000 (1%)",
    ]


def test_what_is_over_at_once_needs_no_line() -> None:
    said = io.StringIO()
    lines = ProgressLines(Console(file=said))
    task = lines.add_task("training", total=3)
    for _ in range(3):
        lines.advance(task)
    assert said.getvalue() == ""


def test_messages_and_bars_do_not_share_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.StringIO()
    bar = _Bars(console=Console(file=terminal, force_terminal=True, width=80), transient=True, auto_refresh=False)
    speaker = Speaker()
    with bar:
        speaker.bar = bar
        finished = bar.add_task("finished", total=1)
        bar.add_task("going on", total=2)
        bar.advance(finished)
        bar.refresh()
        before = terminal.tell()
        speaker.print("a message")
        assert capsys.readouterr().out == "a message\n"
        bar.refresh()
    after = terminal.getvalue()[before:]
    assert after.index("\x1b[2K") < after.index("going on")  # taken away for the message, and shown again
    assert "finished" not in after


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("gone", 0, ""),
        ("full", 2, "standard output cannot be written (No space left on device)"),
        ("closed", 0, ""),
        ("both closed", 0, ""),
    ],
)
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_standard_output_that_takes_nothing(
    words: list[object], tmp_path: Path, how: str, code: int, said: str, more: tuple[str, ...]
) -> None:
    ended = Child(tmp_path, (*map(str, words), *more), stdout=how).wait()
    lines = 0 if how == "both closed" else bool(more) + bool(said)
    assert (ended.code, said in ended.err, ended.err.count("\n")) == (code, True, lines)
    assert len(load_file(tmp_path / "made [x]/model.safetensors")) > 0


def test_a_closed_stream_gives_its_number_to_no_file(tmp_path: Path) -> None:
    code = "import sys; from loki.cli.output import open_closed_streams; open_closed_streams()"
    code += "; sys.exit(open(sys.argv[1], 'w').fileno())"
    line = f'exec {sys.executable} -c "{code}" file <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, check=False).returncode > 2
