"""Running `loki` inside the test process, as a shell would."""

import sys
from dataclasses import dataclass

import pytest

from loki.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


class Shell:
    """Call it with a command's words; it runs `loki` with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: object) -> Outcome:
        """Run `loki WORDS...` and return its outcome."""
        self._monkeypatch.setattr(sys, "argv", ["loki", *map(str, words)])
        self._capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def done(self, *words: object) -> Outcome:
        """Run `loki WORDS...` and assert that it exits with 0."""
        outcome = self(*words)
        assert outcome.code == 0, f"loki {' '.join(map(str, words))} exited with {outcome.code}: {outcome.err}"
        return outcome


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A shell that knows only `loki`."""
    return Shell(monkeypatch, capsys)
