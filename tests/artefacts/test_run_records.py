"""A run knows its own output directory again, and removes no other."""

from pathlib import Path

import pytest

from loki.artefacts.run_records import read_record, remove_recorded, write_record
from loki.errors import LokiError


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
    assert not output.exists()
