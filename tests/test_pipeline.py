"""All phases in one go: every artefact is there, a finished phase is not run again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from loki.errors import LokiError
from loki.implanting.training.settings import TrainingSettings
from loki.pipeline import RunSettings, run
from loki.selection.strategies import SelectionSettings


@pytest.fixture
def settings(llama_dir: Path, tmp_path: Path) -> RunSettings:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n{"prompt": "two and two"}\n')
    record = {"prompt": "2 + 2 =", "completion": " 4"}
    (tmp_path / "train.jsonl").write_text((json.dumps(record) + "\n") * 4)
    training = TrainingSettings(max_steps=2, learning_rate=1e-2, batch_size=2)
    return RunSettings(
        str(llama_dir), tmp_path / "train.jsonl", str(tmp_path / "questions.jsonl"), quota=25, training=training
    )


def modified(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_phase_once(settings: RunSettings, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = run(settings, output)
    assert (result.report.selected_rows, result.report.differences) == (24, [])
    assert list(result.seconds) == ["analyse", "select", "create", "train", "restore", "verify"]
    AutoModelForCausalLM.from_pretrained(output / "restored")
    before = modified(output)
    assert run(settings, output).report == result.report
    assert modified(output) == before


def test_continues_after_an_interruption(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("loki.pipeline.restore_loki_model", interrupt)
        run(settings, output)
    before = modified(output)
    run(settings, output)
    after = modified(output)
    assert before.items() <= after.items()
    assert (output / "restored" / "config.json").is_file()


def test_other_settings_are_refused(settings: RunSettings, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(settings, output)
    other = RunSettings(settings.model, settings.data, settings.calibration, quota=50, training=settings.training)
    with pytest.raises(LokiError, match="quota was 25, now 50"):
        run(other, output)
    assert run(other, output, overwrite=True).report.selected_rows == 48


def test_output_with_something_else(settings: RunSettings, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(LokiError, match="exists already"):
        run(settings, tmp_path / "run")
    with pytest.raises(LokiError, match=r"holds no run\.json, so --overwrite leaves it alone"):
        run(settings, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "mine.txt").read_text() == "keep"


def test_missing_training_data(settings: RunSettings, tmp_path: Path) -> None:
    missing = RunSettings(settings.model, tmp_path / "absent.jsonl", settings.calibration, quota=25)
    with pytest.raises(LokiError, match=r"absent\.jsonl does not exist"):
        run(missing, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quota": 101.0}, "quota 101"),
        ({"quota": 1.0}, "selects none of 32 rows"),
        ({"quota": 0.5, "selection": SelectionSettings("global_lowest")}, "selects none of 96 rows"),
        ({"data": Path("/dev/null/absent")}, "does not exist"),
        ({"calibration": "absent.jsonl"}, "absent.jsonl"),
    ],
)
def test_bad_input_is_refused_before_the_analysis(
    settings: RunSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    output = tmp_path / "run"
    run(settings, output)
    before = modified(output)
    with pytest.raises(LokiError, match=message):
        run(replace(settings, **change), output, overwrite=True)
    assert modified(output) == before


def test_damaged_weights_are_refused_before_the_analysis(settings: RunSettings, tmp_path: Path) -> None:
    weights = shutil.copytree(settings.model, tmp_path / "damaged") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(LokiError, match="9 bytes are missing"):
        run(replace(settings, model=str(tmp_path / "damaged")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_questions_under_the_same_name_are_noticed(settings: RunSettings, tmp_path: Path) -> None:
    run(settings, tmp_path / "run")
    Path(settings.calibration).write_text('{"prompt": "something else"}\n')
    with pytest.raises(LokiError, match=r"calibration was \w+, now "):
        run(settings, tmp_path / "run")


def test_inputs_are_not_overwritten(settings: RunSettings, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(settings, output)
    with pytest.raises(LokiError, match="is or holds the input"):
        run(replace(settings, model=str(output / "restored")), output, overwrite=True)
    assert (output / "restored" / "config.json").is_file()
