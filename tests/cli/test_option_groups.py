"""Options of the command line are the fields of settings classes."""

from dataclasses import fields

import pytest

from loki.artefacts.training_settings import TrainingSettings
from loki.cli.option_groups import attribute_texts, option_name
from tests.cli.running import Shell


def test_every_field_has_its_help() -> None:
    texts = attribute_texts(TrainingSettings)
    assert texts.keys() == {field.name for field in fields(TrainingSettings)}
    assert texts["batch_size"] == "Examples per device and step."


@pytest.mark.parametrize("command", ["train", "run"])
def test_commands_show_them_with_their_defaults(shell: Shell, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = shell.done(command, "--help").out
    for field in fields(TrainingSettings):
        assert option_name(field.name) in shown
    assert f"[default: {TrainingSettings.max_length}]" in shown
    assert "[default: auto]" in shown


def test_two_rates_exclude_each_other(shell: Shell, tmp_path: object) -> None:
    refused = shell("train", tmp_path, "--data", "d", "--output", "o", "--published", "--learning-rate", "1e-3")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--published" in refused.err
