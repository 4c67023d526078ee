"""All phases in one go: every artefact is there, a finished phase is not run again."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from loki.analysis.options import AnalysisOptions
from loki.artefacts.moments import Moments
from loki.artefacts.scores import ScoresReader
from loki.artefacts.training_settings import BackendName, TrainingSettings
from loki.errors import LokiError
from loki.implanting.llamafactory.train import LlamaFactorySettings
from loki.implanting.training.levers import Levers
from loki.pipeline import RunSettings, read_config, run
from loki.pipeline.dry_run import estimate
from loki.selection.quota import rows_for_quota
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
    assert list(result.seconds) == ["analyse", "moments", "select", "create", "train", "restore", "verify"]
    AutoModelForCausalLM.from_pretrained(output / "restored")
    before = modified(output)
    assert run(settings, output).report == result.report
    assert modified(output) == before
    assert json.loads((output / "run.json").read_text())["found"] == {"effective_learning_rate": 1e-2, "steps": 2}


def test_moments_are_of_all_the_data_however_few_samples_are_scored(settings: RunSettings, tmp_path: Path) -> None:
    run(replace(settings, analysis=AnalysisOptions(samples_per_subject=1)), tmp_path / "run")
    with ScoresReader(tmp_path / "run" / "scores.h5") as scores:
        assert scores.samples == 1
    assert Moments(tmp_path / "run" / "moments.safetensors").origin.texts == 2


def test_data_that_only_moments_are_of_is_checked_and_recorded(settings: RunSettings, tmp_path: Path) -> None:
    settings = replace(settings, analysis=AnalysisOptions(samples_per_subject=1))
    run(settings, tmp_path / "run")
    calibration = Path(settings.calibration)
    with ScoresReader(tmp_path / "run" / "scores.h5") as scores:
        unscored = {"questions.jsonl:1": 1, "questions.jsonl:2": 0}[scores.records.sample_ids[0]]
    lines = calibration.read_text().splitlines()

    lines[unscored] = '{"prompt": "three and three"}'
    calibration.write_text("\n".join(lines))
    with pytest.raises(LokiError, match=r"other texts of the moments.*; analyse will be kept"):
        run(settings, tmp_path / "run")
    scored = (tmp_path / "run" / "scores.h5").stat().st_mtime_ns
    run(settings, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "scores.h5").stat().st_mtime_ns == scored

    general = tmp_path / "general.txt"
    general.write_text("Some text that is about nothing in particular. " * 3)
    for other in (replace(settings, protect_data=[str(general)]), settings):  # given, and then left out again
        with pytest.raises(LokiError, match=r"other texts of the moments.*; analyse will be kept"):
            run(other, tmp_path / "run")
        run(other, tmp_path / "run", overwrite=True)
        source = str(general) if other.protect_data else settings.calibration
        assert Moments(tmp_path / "run" / "moments.safetensors").origin.source == source
    settings, part = replace(settings, analysis=AnalysisOptions()), settings
    run(settings, tmp_path / "whole")
    with pytest.raises(LokiError, match=r"moments_data was None.*|other texts of the moments"):
        run(replace(settings, protect_data=[str(general)]), tmp_path / "whole")
    run(replace(settings, protect_data=[str(general)]), tmp_path / "whole", overwrite=True)
    with pytest.raises(LokiError, match="other texts of the moments"):
        run(settings, tmp_path / "whole")
    settings = part

    lines[unscored] = '{"input_ids": [1, 10000000]}'
    calibration.write_text("\n".join(lines))
    with pytest.raises(LokiError, match="10000000"):
        run(settings, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_continues_after_an_interruption(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("loki.pipeline.phases.restore_loki_model", interrupt)
        run(settings, output)
    before = modified(output)
    del before[str(output / "run.json")]  # gets what the training has found
    run(settings, output)
    after = modified(output)
    assert before.items() <= after.items()
    assert (output / "restored" / "config.json").is_file()


def test_other_settings_are_refused(settings: RunSettings, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(settings, output)
    other = replace(settings, quota=50)
    with pytest.raises(LokiError, match=r"quota was 25, now 50.* select, create, train, restore again; analyse"):
        run(other, output)
    scores = (output / "scores.h5").stat().st_mtime_ns
    assert run(other, output, overwrite=True).report.selected_rows == 48
    assert (output / "scores.h5").stat().st_mtime_ns == scores


def test_another_training_option_keeps_the_phases_before(settings: RunSettings, tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = run(settings, output)
    before = modified(output)
    other = replace(settings, training=replace(settings.training, learning_rate=3e-3))
    with pytest.raises(LokiError, match=r"\(training\.learning_rate was 0\.01, now 0\.003\)"):
        run(other, output)
    assert modified(output) == before
    again = run(other, output, overwrite=True)
    kept = {name for name, when in modified(output).items() if before.get(name) == when}
    assert {str(output / "scores.h5"), str(output / "positions.json"), str(output / "loki_model/config.json")} <= kept
    assert first.training is not None
    assert again.training is not None
    assert again.training.learning_rate == 3e-3
    assert json.loads((output / "run.json").read_text())["training"]["learning_rate"] == 3e-3


def test_the_training_takes_the_options_of_its_command(settings: RunSettings, tmp_path: Path) -> None:
    general = tmp_path / "general.txt"
    general.write_text("the cat sat on the mat and looked at the moon. " * 20)
    levers = Levers(keep=str(general), keep_length=16)
    other = LlamaFactorySettings(python=tmp_path / "none")
    for refused, message in (
        (replace(settings, backend=BackendName.LLAMAFACTORY, llamafactory=other), "--llamafactory-python"),
        (replace(settings, llamafactory=LlamaFactorySettings(processes=2)), "--backend llamafactory"),
    ):
        with pytest.raises(LokiError, match=message):
            run(refused, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(replace(settings, levers=levers), tmp_path / "run")
    assert json.loads((tmp_path / "run/trained/training.json").read_text())["keep_weight"] == 1.0
    repeated = RunSettings.from_dict(read_config(tmp_path / "run/run.yaml"))
    assert repeated.levers == levers
    general.write_text("another text altogether. " * 40)
    with pytest.raises(LokiError, match="kept_and_replayed"):
        run(repeated, tmp_path / "run")


def test_an_unfinished_training_needs_no_overwrite(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("loki.pipeline.phases.train_by", interrupt)
        run(settings, tmp_path / "run")
    other = replace(settings, training=replace(settings.training, seed=7))
    assert run(other, tmp_path / "run").report.differences == []


def test_a_run_is_repeated_from_its_configuration(settings: RunSettings, tmp_path: Path) -> None:
    run(settings, tmp_path / "run")
    values = read_config(tmp_path / "run" / "run.yaml")
    assert values["training"]["batch_size"] == 2
    assert values["attribution"]["ig_method"] == "riemann_trapezoid"
    assert {field.name for field in fields(TrainingSettings)} == values["training"].keys()
    run(RunSettings.from_dict(values), tmp_path / "again")
    (tmp_path / "again" / "run.yaml").write_bytes(b"\xff is no UTF-8")
    run(RunSettings.from_dict(values), tmp_path / "again")
    assert read_config(tmp_path / "again" / "run.yaml") == values
    for name in ("restored/model.safetensors", "positions.json", "run.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, "^steps "),
        ({"training": {"lr": 1}}, r"training\.lr"),
        ({"training": [1]}, r"training is \[1\]"),
        ({"training": {"epochs": "many"}}, "training"),
        ({"model": None}, "give --model"),
        ({"backend": "axolotl"}, "axolotl"),
        ({"protect": [1, 2]}, "protect"),
        ({"quota": "ten"}, "quota"),
        ({"training": {"batch_size": 2.5}}, "batch_size"),
        ({"levers": {"keep_weight": "much"}}, "keep_weight"),
    ],
)
def test_configurations_that_are_refused(settings: RunSettings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LokiError, match=message):
        RunSettings.from_dict({**settings.to_dict(), **change})


def test_configurations_that_cannot_be_read(tmp_path: Path) -> None:
    for text in ("- a", "{", "\xff", "since: 2024-99-99", "[" * 5000):
        (tmp_path / "run.yaml").write_bytes(text.encode("latin-1"))
        with pytest.raises(LokiError, match=r"run\.yaml"):
            read_config(tmp_path / "run.yaml")
    with pytest.raises(LokiError, match="does not exist"):
        read_config(tmp_path / "absent.yaml")


def test_a_budget_looks_at_the_calibration_data_where_nothing_else_is_given(settings: RunSettings) -> None:
    given = RunSettings.from_dict({**settings.to_dict(), "levers": {"max_damage": 0.5}})
    assert given.levers == Levers(keep=settings.calibration, keep_weight=0.0, max_damage=0.5)


def test_a_budget_that_allows_no_step_restores_the_base(settings: RunSettings, tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("the cat sat on the mat and looked at the moon. " * 20)
    levers = Levers(keep=str(tmp_path / "general.txt"), keep_weight=0.0, max_damage=0.0)
    report = run(replace(settings, levers=levers), tmp_path / "run").report
    assert (report.changed_rows, report.differences) == (0, [])


def test_a_dry_run_counts_the_rows_that_are_selected(settings: RunSettings, tmp_path: Path) -> None:
    """Rounded down, as the selection does."""
    found = estimate(replace(settings, quota=29.0), tmp_path / "run")
    assert (found.rows, rows_for_quota(29.0, 32)) == (3 * 9, 9)
    whole = replace(settings, quota=30.0, selection=SelectionSettings("global_lowest"))
    assert estimate(whole, tmp_path / "run").rows == rows_for_quota(30.0, 96) == 28


@pytest.mark.slow
def test_dry_run_writes_nothing_and_counts_what_a_run_does(settings: RunSettings, tmp_path: Path) -> None:
    found = estimate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert (found.samples, found.examples, found.rows, found.steps) == (2, 4, 24, 2)
    result = run(settings, tmp_path / "run")
    assert result.training is not None
    assert found.trainable_parameters == result.training.trainable_parameters
    assert 0 < found.training_seconds < 60
    assert 0 < found.analysis_seconds < 60
    with pytest.raises(LokiError, match="quota 101"):
        estimate(replace(settings, quota=101), tmp_path / "run")


def test_output_with_something_else(settings: RunSettings, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(LokiError, match="exists already"):
        run(settings, tmp_path / "run")
    with pytest.raises(LokiError, match=r"no run\.json, .*--overwrite"):
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
        ({"quota": 1.0}, "none of 32 rows"),
        ({"levers": Levers(keep="absent.txt")}, r"absent\.txt"),
        ({"levers": Levers(replay="absent.jsonl")}, r"absent\.jsonl"),
        ({"quota": 0.5, "selection": SelectionSettings("global_lowest")}, "none of 96 rows"),
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
    with pytest.raises(LokiError, match="other calibration data"):
        run(settings, tmp_path / "run")


def test_inputs_are_not_overwritten(settings: RunSettings, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(settings, output)
    with pytest.raises(LokiError, match="holds the input"):
        run(replace(settings, model=str(output / "restored")), output, overwrite=True)
    assert (output / "restored" / "config.json").is_file()
