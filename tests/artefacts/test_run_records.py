"""A run knows its own output directory again, and removes no other."""

import os
from pathlib import Path
from unittest import mock

import pytest

from loki.artefacts.run_records import read_record, remove_recorded, write_record
from loki.errors import LokiError
from loki.files import refuse_existing


def test_records(tmp_path: Path) -> None:
    assert read_record(tmp_path / "out", "run.json") is None
    write_record(tmp_path / "out", "run.json", {"seed": 1})
    assert read_record(tmp_path / "out", "run.json") == {"seed": 1}


def test_only_what_such_a_run_has_made_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    remove_recorded(output, "run.json")
    write_record(output, "other.json", {})
    with pytest.raises(LokiError, match=r"no run\.json"):
        remove_recorded(output, "run.json")
    write_record(output, "run.json", {})
    with pytest.raises(LokiError, match="holds the input"):
        remove_recorded(output, "run.json", output / "other.json")
    assert (output / "other.json").is_file()
    remove_recorded(output, "run.json", tmp_path / "elsewhere")
    assert not list(output.iterdir())


def test_what_a_killed_process_left_of_the_old_ones_goes(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_record(output, "run.json", {})
    (output / "scores.h5").touch()
    child = os.fork()
    if child == 0:
        with mock.patch("shutil.rmtree", lambda path: os._exit(0)):
            remove_recorded(output, "run.json")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    (left,) = output.iterdir()
    assert left.suffix == ".gone"
    refuse_existing(output, overwrite=False)
    write_record(output, "run.json", {"seed": 2})
    assert [path.name for path in output.iterdir()] == ["run.json"]
