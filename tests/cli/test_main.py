"""Exit codes, and errors as one line."""

import sys

import pytest

from loki.cli import main as entry
from loki.cli.app import app
from loki.errors import CheckFailed, LokiError


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


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LokiError):
        run(monkeypatch, "--debug", "fail", "usage")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, "fail", "bug")


def test_unknown_option_exits_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, "fail", "--no-such-option")
    assert raised.value.code == 2
