from typer.testing import CliRunner

from loki.cli import merge_adapters  # noqa: F401 (registers the command)
from loki.cli.app import app
from loki.errors import LokiError
from loki.implanting.peft.adapter_files import read_adapter
from tests.implanting.peft.adapters import save_adapter


def test_it_merges_and_says_how_many_rows(tmp_path):
    first, second = save_adapter(tmp_path / "1"), save_adapter(tmp_path / "2", [[2], [9], []])
    result = CliRunner().invoke(app, ["merge-adapters", str(first), str(second), "--output", str(tmp_path / "both")])
    assert result.exit_code == 0, result.output
    assert "2 adapters, 7 rows, merged into" in result.output
    assert read_adapter(tmp_path / "both").config.positions == [[1, 2, 3], [9], [0, 7, 31]]


def test_overlapping_rows_reach_the_user(tmp_path):
    adapter = save_adapter(tmp_path / "1")
    result = CliRunner().invoke(app, ["merge-adapters", str(adapter), str(adapter), "--output", str(tmp_path / "both")])
    assert isinstance(result.exception, LokiError)
    assert "both change row 1 of layer 0" in str(result.exception)


def test_help_has_an_example():
    assert "loki merge-adapters runs/tools runs/dates" in CliRunner().invoke(app, ["merge-adapters", "--help"]).output
