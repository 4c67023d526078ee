"""Exit codes, and errors as one line."""

import logging
import subprocess
import sys

import pytest

from loki.cli import main as entry
from loki.cli.app import app
from loki.cli.main import COMMANDS
from loki.errors import CheckFailed, LokiError
from tests.cli.running import Shell

entry_module = sys.modules["loki.cli.main"]  # `loki.cli.main` itself is the function


@app.command(hidden=True)
def fail(kind: str) -> None:
    """Raise what the test asks for."""
    raise {
        "usage": LokiError("no such thing [x]"),
        "check": CheckFailed("differs"),
        "interrupt": KeyboardInterrupt(),
        "disk": OSError(28, "No space left on device", "/out"),
        "bug": ZeroDivisionError("a bug"),
    }[kind]


@app.command(name="run-forever", hidden=True)
def run_forever() -> None:
    """Be interrupted."""
    raise KeyboardInterrupt


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["loki", *arguments])
    entry()


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        ("usage", 2, "error: no such thing [x]"),
        ("check", 1, "error: differs"),
        ("interrupt", 130, "interrupted"),
        ("disk", 2, "No space left on device: /out"),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, code: int, text: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, "fail", kind)
    assert raised.value.code == code
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("continued", [True, False])
def test_only_some_commands_are_continued(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], continued: bool
) -> None:
    assert set(entry_module.CONTINUED) == {"analyse", "sample", "moments", "tune", "train", "run"}
    monkeypatch.setattr(entry_module, "CONTINUED", ("run-forever",) if continued else ())
    with pytest.raises(SystemExit):
        run(monkeypatch, "run-forever")
    advice = ": run the same command again to continue" if continued else ""
    assert capsys.readouterr().err == f"error: interrupted{advice}\n"


@pytest.mark.parametrize("words", [("--debug", "fail", "usage"), ("fail", "--debug", "usage")])
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    with pytest.raises(LokiError):
        run(monkeypatch, *words)


def test_help_shows_debug(shell: Shell) -> None:
    assert "--debug" in shell.done("--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(shell: Shell, command: str) -> None:
    name = command.replace("_", "-")
    shown = shell.done(name, "--help").out
    assert f"loki {name} " in shown.partition("Example")[2]


def test_python_m_loki() -> None:
    finished = subprocess.run([sys.executable, "-m", "loki", "select", "--help"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "loki select" in finished.stdout


@pytest.mark.parametrize(
    ("message", "heard"),
    [("Setting accelerator to CPU. If you have GPU ..., we were unable to detect it.", False), ("overflow", True)],
)
def test_deepspeed_does_not_report_a_machine_without_gpu(shell: Shell, message: str, heard: bool) -> None:
    shell.done("--help")
    assert bool(logging.getLogger("DeepSpeed").filter(logging.makeLogRecord({"msg": message}))) == heard


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, "fail", "bug")


def test_unknown_option_exits_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, "fail", "--no-such-option")
    assert raised.value.code == 2
