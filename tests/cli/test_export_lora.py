import pytest
from typer.testing import CliRunner

from loki.cli import export_lora  # noqa: F401 (registers the command)
from loki.cli.app import app
from loki.errors import LokiError
from tests.implanting.peft.adapters import save_adapter


def test_it_writes_a_lora_adapter_and_says_its_rank(tmp_path):
    adapter = save_adapter(tmp_path / "loki")
    result = CliRunner().invoke(app, ["export-lora", str(adapter), "--output", str(tmp_path / "lora"), "--full-rows"])
    assert result.exit_code == 0, result.output
    assert "LoRA adapter of rank 3 written to" in result.output
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()


def test_refusals_reach_the_user(tmp_path):
    adapter = save_adapter(tmp_path / "loki")
    result = CliRunner().invoke(app, ["export-lora", str(adapter), "--output", str(tmp_path / "lora")])
    assert isinstance(result.exception, LokiError)
    (tmp_path / "taken" / "mine").mkdir(parents=True)
    for output, problem in ((tmp_path / "taken", "exists already"), (adapter, "holds the input")):
        words = ["export-lora", str(adapter), "--output", str(output), "--full-rows"]
        with pytest.raises(LokiError, match=problem):
            raise CliRunner().invoke(app, words).exception


def test_help_has_an_example():
    assert "loki export-lora runs/adapter --output" in CliRunner().invoke(app, ["export-lora", "--help"]).output
