"""Ctrl-C and SIGTERM: the work ends in order, with one line, whatever libraries make of them."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import typer

from loki.cli.app import app
from loki.cli.stopping import stopping
from loki.errors import LokiError
from tests.cli.running import Shell


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """As in a shell's foreground: a job that a script starts in the background inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@app.command(name="stop-me", hidden=True)
def stop_me(number: int, turned_into: str) -> None:
    """Get a signal."""
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt as error:
        others = {"ours": LokiError("damaged"), "theirs": RuntimeError("in C++"), "left": SystemExit(1)}
        if turned_into == "done":
            return
        raise others.get(turned_into, error) from error
    raise typer.Exit(70)


@pytest.mark.parametrize("turned_into", ["itself", "ours", "theirs", "left"])
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_one_line(shell: Shell, number: int, code: int, said: str, turned_into: str) -> None:
    outcome = shell("stop-me", int(number), turned_into)
    assert (outcome.code, outcome.err) == (code, f"error: {said}\n")


class AsksWhenItGoes:
    """Gets a signal while it is put away, where Python ignores exceptions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@app.command(name="stop-me-while-putting-away", hidden=True)
def stop_me_while_putting_away(number: int) -> None:
    """Get a signal whose exception is ignored, and work on for long."""
    AsksWhenItGoes(number)
    for _ in range(500):
        time.sleep(0.01)
    raise typer.Exit(70)


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_a_signal_while_an_object_is_put_away_is_not_lost(shell: Shell, number: int, code: int, said: str) -> None:
    outcome = shell("stop-me-while-putting-away", int(number))
    assert (outcome.code, outcome.err) == (code, f"error: {said}\n")


def test_a_command_that_ends_all_the_same_has_done_its_work(shell: Shell) -> None:
    assert (shell("stop-me", int(signal.SIGTERM), "done").code, shell("stop-me", int(signal.SIGINT), "done").err) == (
        0,
        "",
    )


def test_what_the_caller_does_with_a_signal_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopping():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher ends its processes itself
        with stopping():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
