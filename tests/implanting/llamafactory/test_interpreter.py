"""Which Python runs LlamaFactory, and what is said when none can."""

import sys
from pathlib import Path

import pytest

from loki.errors import LokiError
from loki.implanting.llamafactory import interpreter
from loki.implanting.llamafactory.interpreter import ENVIRONMENT, find_interpreter


def make_python(path: Path, missing: str = "", code: int = 0) -> Path:
    """A stand-in for Python that claims to lack the modules in `missing`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {missing}\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_the_environment_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    python = make_python(tmp_path / ENVIRONMENT / "bin" / "python")
    assert find_interpreter() == python


def test_this_one_where_it_has_llamafactory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "find_spec", lambda name: object())
    monkeypatch.setattr(interpreter, "_PROBE", "print()")
    assert find_interpreter() == Path(sys.executable)


def test_the_given_one_comes_first(tmp_path: Path) -> None:
    python = make_python(tmp_path / "python")
    assert find_interpreter(python) == python


def test_what_it_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"no llamafactory, loki: .*make llamafactory"):
        find_interpreter(make_python(tmp_path / "python", missing="llamafactory loki"))
    with pytest.raises(LokiError, match=r"pip install .* deepspeed"):
        find_interpreter(make_python(tmp_path / "python", missing="deepspeed"), deepspeed=True)


def test_a_real_python_is_asked(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="no llamafactory"):
        find_interpreter(Path(sys.executable))


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "__file__", str(tmp_path / "a" / "b" / "c" / "d" / "e.py"))
    monkeypatch.setattr(interpreter, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LokiError, match=r"not there: .*make llamafactory"):
        find_interpreter()
    with pytest.raises(LokiError, match=r"absent .*there"):
        find_interpreter(tmp_path / "absent")
    with pytest.raises(LokiError, match=r"does not run .*--llamafactory-python"):
        find_interpreter(make_python(tmp_path / "python", code=1))
