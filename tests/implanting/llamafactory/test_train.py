"""`loki train --backend llamafactory` around LlamaFactory itself, which a function stands in for."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_from_disk
from rich.console import Console
from safetensors.torch import load_file, save_file

from loki import create_loki_model, restore_loki_model
from loki.artefacts.positions import write_positions
from loki.artefacts.training_settings import Rate, TrainingSettings, published_learning_rate
from loki.errors import LokiError
from loki.implanting.llamafactory import train as training
from loki.implanting.llamafactory.train import LlamaFactorySettings, train_with_llamafactory
from loki.implanting.training.lever_plan import LeverPlan
from loki.implanting.training.levers import Levers
from loki.implanting.training.rows import ROWS_FILE
from loki.models.loading import load_config, load_tokenizer
from loki.restoring.verify import verify
from tests.implanting.llamafactory.files import POSITIONS, write_chats, write_records

SETTINGS = TrainingSettings(max_steps=4, learning_rate=Rate.PUBLISHED)
PROJECTION = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "chat.jsonl")


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    write_positions(tmp_path / "positions.json", POSITIONS)
    return tmp_path / "positions.json"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were started; what they would train is one row of the model."""
    started: list[list[str]] = []

    def launch(words: list[str], run: Any, output: Path, **_: Any) -> None:
        started.append(words)
        model = Path(yaml.safe_load(run.configuration.read_text())["model_name_or_path"])
        for file in model.iterdir():
            (output / file.name).write_bytes(file.read_bytes())
        weights = load_file(model / "model.safetensors")
        weights[PROJECTION][POSITIONS[2][0]] += 1
        save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
        (output / "trainer_state.json").write_text(json.dumps({"global_step": 4, "log_history": [{"train_loss": 2.5}]}))

    monkeypatch.setattr(training, "find_interpreter", lambda given, deepspeed: given or Path("python"))
    monkeypatch.setattr(training, "launch", launch)
    return started


def test_an_ordinary_model_becomes_a_trained_loki_model(
    llama_dir: Path, positions: Path, data: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    result = train_with_llamafactory(llama_dir, data, tmp_path / "out", SETTINGS, positions=positions)
    assert (result.steps, result.loss, result.trainable_parameters, result.changed_rows) == (4, 2.5, 5 * 48, 1)
    restore_loki_model(tmp_path / "out", tmp_path / "restored")
    report = verify(llama_dir, tmp_path / "restored", POSITIONS)
    assert (report.differences, report.changed_rows) == ([], 1)


def test_run_directory(llama_dir: Path, positions: Path, data: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    own = LlamaFactorySettings(processes=2, deepspeed=True, python=Path("/env/python"))
    output = tmp_path / "out"
    train_with_llamafactory(llama_dir, data, output, SETTINGS, own, positions=positions, eval_data=data)
    run = output / "llamafactory"
    written = yaml.safe_load((run / "train.yaml").read_text())
    assert commands[0][0] == "/env/python"
    assert commands[0][-1] == str(run / "train.yaml")
    assert "torch.distributed.run" in commands[0]
    assert written["learning_rate"] == published_learning_rate(100 * 5 / (3 * 32))
    assert written["deepspeed"] == str(run / "deepspeed.json")
    assert (written["tokenized_path"], written["template"]) == (str(run / "tokenised"), "empty")
    assert {name: len(split) for name, split in load_from_disk(str(run / "tokenised")).items()} == {
        "train": 32,
        "validation": 32,
    }
    assert load_config(written["model_name_or_path"]).target_pos == POSITIONS


def test_levers_are_described_to_the_other_process(
    llama_dir: Path,
    positions: Path,
    data: Path,
    tmp_path: Path,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "general.txt").write_text("Most of what is known is better kept than lost. " * 12)
    write_records(tmp_path / "replay.jsonl", *({"text": f"{number} and nothing"} for number in range(4)))
    levers = Levers(
        keep=str(tmp_path / "general.txt"),
        keep_weight=0.5,
        max_damage=0.02,
        replay=str(tmp_path / "replay.jsonl"),
        replay_fraction=0.1,
    )
    output, said, finish = tmp_path / "out", Console(record=True, file=io.StringIO(), width=200), training.launch

    def launch(words: list[str], run: Any, *rest: Any, **options: Any) -> None:
        finish(words, run, *rest, **options)
        run.outcome.write_text(json.dumps({"said": "damage 0.03 is above the budget\n", "nothing_trained": True}))

    monkeypatch.setattr(training, "launch", launch)
    result = train_with_llamafactory(
        llama_dir, data, output, SETTINGS, positions=positions, levers=levers, console=said
    )
    assert result.changed_rows == 0
    assert "4 general examples are mixed in" in (text := said.export_text())
    assert "damage 0.03 is above the budget" in text
    plan = LeverPlan(**json.loads((output / "llamafactory/levers.json").read_text()))
    assert (plan.weight, plan.max_damage, plan.top) == (0.5, 0.02, None)
    text = "".join(load_tokenizer(llama_dir).decode(window) for window in plan.windows or [])
    assert text.count("better kept than lost") == 12
    assert len(load_from_disk(str(output / "llamafactory/tokenised"))["train"]) == 32 + 4
    # Without levers nothing of an earlier run is left to be read.
    train_with_llamafactory(llama_dir, data, output, SETTINGS, positions=positions, overwrite=True)
    assert not (output / "llamafactory/levers.json").exists()


def test_what_the_template_of_llamafactory_makes_is_not_mixed_with(
    llama_dir: Path, positions: Path, data: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    own = LlamaFactorySettings(template="llama3")
    with pytest.raises(LokiError, match=r"--replay .*leave out --template"):
        train_with_llamafactory(
            llama_dir, data, tmp_path / "out", SETTINGS, own, positions=positions, levers=Levers(replay=str(data))
        )
    assert not (tmp_path / "out").exists()


def test_records_are_left_to_a_template_of_llamafactory(
    llama_dir: Path, positions: Path, data: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    own = LlamaFactorySettings(template="llama3")
    train_with_llamafactory(llama_dir, data, tmp_path / "out", SETTINGS, own, positions=positions, eval_data=data)
    written = yaml.safe_load((tmp_path / "out/llamafactory/train.yaml").read_text())
    datasets = json.loads((tmp_path / "out/llamafactory/dataset_info.json").read_text())
    assert (written["dataset"], written["eval_dataset"]) == tuple(datasets)
    assert written["template"] == "llama3"
    assert "tokenized_path" not in written
    assert Path(datasets["train"]["file_name"]).read_text().count("\n") == 32


def test_a_loki_model_is_used_as_it_is(
    llama_dir: Path, positions: Path, data: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    made = create_loki_model(model_name=llama_dir, target_pos_path=positions, save_dir=tmp_path / "loki")
    train_with_llamafactory(made, data, tmp_path / "out", SETTINGS)
    assert yaml.safe_load((tmp_path / "out/llamafactory/train.yaml").read_text())["model_name_or_path"] == str(made)
    assert not (tmp_path / "out/llamafactory/loki_model").exists()
    with pytest.raises(LokiError, match=r"leave out .*--positions"):
        train_with_llamafactory(made, data, tmp_path / "other", SETTINGS, positions=positions)
    with pytest.raises(LokiError, match=r"give .*--positions"):
        train_with_llamafactory(llama_dir, data, tmp_path / "other", SETTINGS)
    assert not (tmp_path / "other").exists()


def test_resuming(
    llama_dir: Path,
    positions: Path,
    data: Path,
    tmp_path: Path,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    finish = training.launch

    def interrupted(*_: Any, **__: Any) -> None:
        (output / "checkpoint-2").mkdir()
        (output / "checkpoint-2" / "trainer_state.json").write_text("{}")
        save_file({"row": torch.zeros(1)}, output / "checkpoint-2" / ROWS_FILE)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_with_llamafactory(llama_dir, data, output, SETTINGS, positions=positions)
    monkeypatch.setattr(training, "launch", finish)
    with pytest.raises(LokiError, match="max_steps was 4, now 5"):
        train_with_llamafactory(
            llama_dir, data, output, TrainingSettings(max_steps=5, learning_rate=Rate.PUBLISHED), positions=positions
        )
    train_with_llamafactory(llama_dir, data, output, SETTINGS, positions=positions)
    written = yaml.safe_load((output / "llamafactory/train.yaml").read_text())
    assert written["resume_from_checkpoint"] == str(output / "checkpoint-2")
    with pytest.raises(LokiError, match="finished training"):
        train_with_llamafactory(llama_dir, data, output, SETTINGS, positions=positions)


def test_a_failure_before_the_first_checkpoint_leaves_nothing_to_resume(
    llama_dir: Path,
    positions: Path,
    data: Path,
    tmp_path: Path,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish = training.launch

    def failing(*_: Any, **__: Any) -> None:
        raise LokiError("no such template")

    monkeypatch.setattr(training, "launch", failing)
    with pytest.raises(LokiError, match="no such template"):
        train_with_llamafactory(
            llama_dir, data, tmp_path / "out", SETTINGS, LlamaFactorySettings("nope"), positions=positions
        )
    monkeypatch.setattr(training, "launch", finish)
    train_with_llamafactory(llama_dir, data, tmp_path / "out", SETTINGS, positions=positions)


def test_no_process_is_refused() -> None:
    with pytest.raises(LokiError, match="--processes 0"):
        LlamaFactorySettings(processes=0)
