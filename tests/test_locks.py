"""A directory that several attempts write into belongs to one process at a time."""

import os
from pathlib import Path

import pytest

from loki.errors import LokiError
from loki.locks import held


def in_another_process(folder: Path) -> bool:
    """Whether another process is let in."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            with held(folder):
                code = 0
        except LokiError:
            code = 1
        finally:
            os._exit(code)
    return {0: True, 1: False}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


def test_one_at_a_time(tmp_path: Path) -> None:
    with held(tmp_path / "out"):
        assert not in_another_process(tmp_path / "out")
        assert in_another_process(tmp_path / "other")
        assert not list((tmp_path / "out").iterdir())
    assert in_another_process(tmp_path / "out")


def test_a_folder_that_was_made_for_nothing_goes(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "a/b"):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LokiError, match="is a file"), held(tmp_path / "file"):
        pass
