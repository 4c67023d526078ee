import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from rich.progress import Progress

from loki.errors import CheckFailed, LokiError
from loki.kva.analyse import analyse, default_scores_path
from loki.kva.batches import plan_batches
from loki.kva.job import prepare
from loki.kva.scores import ScoresReader
from loki.kva.settings import AttributionSettings
from loki.kva.work_folder import work_folder_of
from loki.models.checkpoint import fingerprint
from loki.ranks import Ranks
from loki.selection.overlap import overlap
from loki.selection.strategies import select
from tests.kva.calibration_files import write_prompts
from tests.kva.fake_engine import HIDDEN, LAYERS, FakeAttributor, fake_attribution
from tests.kva.scores_files import write_scores
from tests.tiny_models import save_tiny_model

COUNT = 37
BATCH = 4


class Analyst:
    """Analyses the same data with the same model again and again."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.data = folder / "prompts.jsonl"
        self.output = folder / "out" / "scores.h5"
        self.partial = folder / "out" / "scores.h5.partial"
        self.prompts = write_prompts(self.data, COUNT)

    def __call__(self, settings: AttributionSettings | None = None, **changes: Any) -> Any:
        arguments: dict[str, Any] = {"batch_size": BATCH, **changes}
        model, data = arguments.pop("model", self.model), arguments.pop("data", self.data)
        return analyse(model, str(data), arguments.pop("output", self.output), settings, **arguments)

    def dataset(self) -> np.ndarray:
        with h5py.File(self.output) as file:
            return file["dataset"][:]

    def expected(self, prompts: list[list[int]] | None = None) -> np.ndarray:
        """What the fake engine gives for the batches these prompts are planned in."""
        prompts = self.prompts if prompts is None else prompts
        scores = np.zeros((len(prompts), LAYERS, HIDDEN), dtype=np.float32)
        for batch in plan_batches([len(prompt) for prompt in prompts], BATCH):
            for index in batch:
                scores[index] = fake_attribution(prompts[index], len(batch)).scores.numpy()
        return scores


@pytest.fixture
def analyst(llama_dir: Path, tmp_path: Path, engine: FakeAttributor) -> Analyst:
    return Analyst(llama_dir, tmp_path)


@pytest.fixture
def interrupted(analyst: Analyst, engine: FakeAttributor) -> Iterator[Analyst]:
    engine.error, engine.error_after = KeyboardInterrupt(), 20
    with pytest.raises(KeyboardInterrupt):
        analyst()
    engine.error = None
    engine.prompts.clear()
    return analyst


def test_scores_and_records_are_in_the_order_of_the_data(analyst: Analyst, engine: FakeAttributor) -> None:
    analysis = analyst()
    assert (analysis.path, analysis.samples, analysis.computed) == (analyst.output, COUNT, COUNT)
    assert analysis.completeness == pytest.approx(0.01)
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())
    with ScoresReader(analyst.output) as reader:
        records, provenance = reader.records, reader.provenance
    assert len(set(records.sample_ids)) == COUNT
    assert records.subjects[:3] == ["history", "maths", "history"]
    assert records.target_token_ids.tolist() == [fake_attribution(prompt, 1).target for prompt in analyst.prompts]
    assert set(records.target_probabilities) == {0.25}
    assert provenance is not None
    assert provenance.model == str(analyst.model)
    assert provenance.model_fingerprint == fingerprint(analyst.model)
    assert (provenance.definition, provenance.steps, provenance.ig_method) == ("captum", 7, "riemann_trapezoid")
    assert (provenance.source, provenance.dtype) == (str(analyst.data), "float32")
    assert sorted(engine.prompts) == sorted(map(tuple, analyst.prompts))
    assert list(analyst.output.parent.iterdir()) == [analyst.output]


def test_progress_counts_the_samples(analyst: Analyst, engine: FakeAttributor) -> None:
    engine.error, engine.error_after = KeyboardInterrupt(), 20
    with pytest.raises(KeyboardInterrupt):
        analyst()
    engine.error = None
    with Progress(disable=True) as progress:
        analyst(progress=progress)
    (task,) = progress.tasks
    assert (task.completed, task.total) == (COUNT, COUNT)
    assert task.description.endswith(" samples/s")


def test_targets_of_the_data_are_used(analyst: Analyst) -> None:
    analyst.data.write_text('{"input_ids": [9, 10], "target": 11}\n{"input_ids": [9, 10]}\n')
    analyst()
    with ScoresReader(analyst.output) as reader:
        assert reader.records.target_token_ids.tolist() == [11, fake_attribution([9, 10], 1).target]


@pytest.mark.parametrize("after", [0, 1, 9, 33])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("any")], ids=["Ctrl-C", "error"])
def test_an_interrupted_run_continues(
    analyst: Analyst, engine: FakeAttributor, after: int, error: BaseException
) -> None:
    engine.error, engine.error_after = error, after
    with pytest.raises(type(error)):
        analyst()
    assert not analyst.output.exists()
    engine.error = None
    analysis = analyst()
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())
    assert sorted(engine.prompts) == sorted(map(tuple, analyst.prompts))  # nothing twice, nothing missing
    assert analysis.computed <= COUNT - after
    assert list(analyst.output.parent.iterdir()) == [analyst.output]


def test_continuing_with_an_automatic_batch_size_keeps_that_of_the_interrupted_run(
    analyst: Analyst, engine: FakeAttributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loki.kva.job.auto_batch_size", lambda *_: BATCH)
    engine.error, engine.error_after = KeyboardInterrupt(), 10
    with pytest.raises(KeyboardInterrupt):
        analyst(batch_size="auto")
    engine.error = None
    monkeypatch.setattr("loki.kva.job.auto_batch_size", lambda *_: 9)
    analyst(batch_size="auto")
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


def test_continuing_uses_the_memory_budget_of_the_interrupted_run(
    interrupted: Analyst, engine: FakeAttributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loki.kva.computing.free_memory", lambda _: 2**20)
    interrupted()
    assert engine.budgets == {2**30}


def test_a_memory_budget_of_ones_own(interrupted: Analyst, engine: FakeAttributor) -> None:
    interrupted(memory_budget=2**25)
    assert engine.budgets == {2**30, 2**25}


def test_a_full_disk_loses_at_most_the_batch_in_hand(analyst: Analyst, monkeypatch: pytest.MonkeyPatch) -> None:
    savez, written = np.savez, []

    def full_after_three(stream: Any, **arrays: np.ndarray) -> None:
        if len(written) == 3:
            stream.write(b"PK half a")
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(stream, **arrays)
        written.append(len(arrays["indices"]))

    monkeypatch.setattr(np, "savez", full_after_three)
    with pytest.raises(OSError, match="No space left"):
        analyst()
    monkeypatch.setattr(np, "savez", savez)
    analysis = analyst()
    assert analysis.computed == COUNT - sum(written)
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


def test_a_full_disk_at_the_end_loses_nothing(
    analyst: Analyst, engine: FakeAttributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "resize", fail_with(OSError("Can't write data (No space left on device)")))
        with pytest.raises(LokiError, match=r"scores\.h5 cannot be written .* free some space and run the same"):
            analyst()
    assert not analyst.output.exists()
    computed = len(engine.prompts)
    analyst()
    assert len(engine.prompts) == computed == COUNT
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


def fail_with(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_batch_damaged_on_disk_is_named(analyst: Analyst, engine: FakeAttributor) -> None:
    engine.error, engine.error_after = KeyboardInterrupt(), 33
    with pytest.raises(KeyboardInterrupt):
        analyst()
    engine.error = None
    stored = min((analyst.partial / "batches").iterdir())
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 0xFF
    stored.write_bytes(data)
    with pytest.raises(LokiError, match=rf"{stored.name} is missing or damaged .*: remove it and run the same command"):
        analyst()
    stored.unlink()
    analyst()
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": AttributionSettings(definition="paper")}, "definition captum and paper"),
        ({"settings": AttributionSettings(steps=9)}, "steps 7 and 9"),
        ({"settings": AttributionSettings(ig_method="riemann_left")}, "ig_method riemann_trapezoid and riemann_left"),
        ({"settings": AttributionSettings(absolute=True)}, "absolute False and True"),
        ({"dtype": "bfloat16"}, "dtype float32 and bfloat16"),
        ({"batch_size": 5}, "batch_size 4 and 5"),
        ({"subjects": ["maths"]}, "source_digest .* samples 37 and 18"),
        ({"until_stable": 0.9}, r"until_stable None and \[0.9, 10.0\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_continuing_with_other_settings_is_refused(
    interrupted: Analyst, engine: FakeAttributor, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(LokiError, match=rf"holds an interrupted run with other settings \(there and now: .*{named}"):
        interrupted(**changes)
    assert not engine.prompts
    interrupted()
    np.testing.assert_array_equal(interrupted.dataset(), interrupted.expected())


def test_continuing_with_another_model_or_other_data_is_refused(interrupted: Analyst, qwen2_dir: Path) -> None:
    with pytest.raises(LokiError, match="model_fingerprint"):
        interrupted(model=qwen2_dir)
    write_prompts(interrupted.data, COUNT, seed=1)
    with pytest.raises(LokiError, match="source_digest"):
        interrupted()


def test_continuing_with_another_configuration_is_refused(interrupted: Analyst, tmp_path: Path) -> None:
    """What is said of the model without changing what it computes does not matter, nor how the data is named."""
    copy = shutil.copytree(interrupted.model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    renamed = {**config, "_name_or_path": "other", "transformers_version": "0.0", "use_cache": False}
    (copy / "config.json").write_text(json.dumps({**renamed, "rms_norm_eps": 0.1}))
    with pytest.raises(LokiError, match="config_digest"):
        interrupted(model=copy)
    (copy / "config.json").write_text(json.dumps(renamed))
    interrupted(model=copy, data=os.path.relpath(interrupted.data))
    np.testing.assert_array_equal(interrupted.dataset(), interrupted.expected())


@pytest.mark.parametrize("field", ["id", "subject"])
@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"], ids=["null", "surrogate"])
def test_what_a_scores_file_cannot_hold_is_refused_first(analyst: Analyst, field: str, text: str) -> None:
    analyst.data.write_text(json.dumps({"input_ids": [9, 10], field: text}))
    with pytest.raises(LokiError, match=rf"its {field} 'a.*b' holds a null character or half a surrogate pair"):
        analyst()
    assert not analyst.output.parent.exists()


def test_a_checkpoint_in_a_type_of_its_own_needs_a_choice(analyst: Analyst, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "double", dtype=torch.float64)
    with pytest.raises(LokiError, match="was saved in float64, in which LoKI does not compute: pass --dtype float32"):
        analyst(model=model)
    analyst(model=model, dtype="float32")


def test_a_model_is_not_spread_by_several_processes(llama_dir: Path) -> None:
    with pytest.raises(LokiError, match="--device-map auto spreads one model over all devices, but 2 processes"):
        prepare(llama_dir, "any.jsonl", AttributionSettings(), Ranks(0, 2), device_map="auto")


def test_overwrite_discards_an_interrupted_run_with_other_settings_only(
    interrupted: Analyst, engine: FakeAttributor
) -> None:
    interrupted(overwrite=True)
    assert len(engine.prompts) < COUNT
    engine.prompts.clear()
    interrupted(AttributionSettings(steps=9), overwrite=True)
    assert len(engine.prompts) == COUNT
    with ScoresReader(interrupted.output) as reader:
        assert reader.provenance is not None
        assert reader.provenance.steps == 9


def test_two_processes_do_not_work_in_one_folder(analyst: Analyst) -> None:
    with work_folder_of(analyst.output).hold(), pytest.raises(LokiError, match="another process is working in"):
        analyst()
    analyst()


def test_foreign_files_in_the_work_folder_stay(analyst: Analyst) -> None:
    analyst.partial.mkdir(parents=True)
    (analyst.partial / "notes.txt").write_text("mine")
    analyst()
    assert [path.name for path in analyst.partial.iterdir()] == ["notes.txt"]


def test_a_finished_analysis_is_not_repeated(analyst: Analyst, engine: FakeAttributor) -> None:
    analyst()
    before = analyst.output.read_bytes()
    engine.prompts.clear()
    analysis = analyst()
    assert (analysis.samples, analysis.computed, engine.prompts) == (COUNT, 0, [])
    assert analyst.output.read_bytes() == before
    assert not analyst.partial.exists()


def test_an_existing_output_is_kept_unless_it_may_be_replaced(analyst: Analyst) -> None:
    analyst(AttributionSettings(definition="paper"))
    before = analyst.output.read_bytes()
    with pytest.raises(LokiError, match=r"exists already \(definition paper and captum; .*--write-mode a"):
        analyst()
    assert analyst.output.read_bytes() == before
    assert not analyst.partial.exists()
    analyst(overwrite=True)
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


@pytest.mark.parametrize("append", [False, True])
def test_published_files_are_not_replaced_or_added_to(analyst: Analyst, append: bool) -> None:
    analyst.output.parent.mkdir()
    with h5py.File(analyst.output, "w") as file:
        file.create_dataset("dataset", data=np.zeros((2, LAYERS, HIDDEN), dtype=np.float16))
    with pytest.raises(LokiError, match="exists already and does not say how its scores were made"):
        analyst(append=append)


def test_append_adds_the_samples_that_are_missing(analyst: Analyst, engine: FakeAttributor) -> None:
    write_prompts(analyst.data, 20)
    analyst(append=True)
    write_prompts(analyst.data, COUNT)
    engine.prompts.clear()
    engine.error, engine.error_after = KeyboardInterrupt(), 5
    with pytest.raises(KeyboardInterrupt):
        analyst(append=True)
    engine.error = None
    analysis = analyst(append=True)
    assert (analysis.samples, len(engine.prompts)) == (COUNT, COUNT - 20)
    parts = [analyst.expected(analyst.prompts[:20]), analyst.expected(analyst.prompts[20:])]
    np.testing.assert_array_equal(analyst.dataset(), np.concatenate(parts))
    engine.prompts.clear()
    assert (analyst().computed, analyst(append=True).computed) == (0, 0)  # now it is the whole of the data
    assert not analyst.partial.exists()


def test_append_of_other_data_joins_the_sources(analyst: Analyst, tmp_path: Path) -> None:
    analyst()
    write_prompts(tmp_path / "more.jsonl", 5, seed=1)
    assert analyst(data=tmp_path / "more.jsonl", append=True).samples == COUNT + 5
    with ScoresReader(analyst.output) as reader:
        assert reader.provenance is not None
        assert reader.provenance.source == f"{analyst.data} + {tmp_path / 'more.jsonl'}"


def test_append_to_other_settings_or_changed_samples_is_refused(analyst: Analyst) -> None:
    analyst()
    with pytest.raises(LokiError, match=r"cannot add to .*: it was made with other settings .*steps 7 and 9"):
        analyst(AttributionSettings(steps=9), append=True)
    write_prompts(analyst.data, COUNT, seed=1)
    with pytest.raises(LokiError, match="has other tokens there: the data has changed"):
        analyst(append=True)


def test_scores_that_are_not_finite_are_refused(
    analyst: Analyst, engine: FakeAttributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tuple(analyst.prompts[17])
    engine_attribute = engine.attribute

    def attribute(batch: Any, targets: Any) -> Any:
        results = engine_attribute(batch, targets)
        for prompt, result in zip(batch, results, strict=True):
            if tuple(prompt) == broken:
                result.scores[2, 5] = torch.nan
        return results

    monkeypatch.setattr(engine, "attribute", attribute)
    with pytest.raises(LokiError, match=r"sample .*18.*, layer 2: a score is NaN or infinite"):
        analyst()
    assert not analyst.output.exists()


def test_check_recomputes_some_samples_with_captum(analyst: Analyst, engine: FakeAttributor) -> None:
    analyst(check=3)
    assert "captum" in engine.engines
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


def test_check_fails_before_anything_wrong_is_stored(analyst: Analyst, engine: FakeAttributor) -> None:
    engine.captum_factor = 1.001
    with pytest.raises(CheckFailed, match=r"sample .*: the scores differ from Captum's by 0\.001"):
        analyst(check=1)
    assert len(engine.prompts) <= BATCH  # the batch with that sample is computed first
    assert not analyst.output.exists()
    assert not list((analyst.partial / "batches").iterdir())


def test_check_looks_at_batches_of_an_interrupted_run_too(interrupted: Analyst, engine: FakeAttributor) -> None:
    interrupted(check=COUNT)
    assert sorted(engine.checked) == sorted(map(tuple, interrupted.prompts))
    assert len(engine.prompts) <= COUNT - 20  # what was stored is not computed again


def test_check_of_a_finished_file_looks_at_what_it_holds(analyst: Analyst, engine: FakeAttributor) -> None:
    analyst()
    engine.prompts.clear()
    assert analyst(check=5).computed == 0
    assert len(set(engine.checked)) == 5
    assert set(engine.checked) <= set(map(tuple, analyst.prompts))
    assert not engine.prompts
    with h5py.File(analyst.output, "a") as file:
        file["dataset"][7] *= 2
    with pytest.raises(CheckFailed, match=r":8: the scores differ from Captum's by 1 .*--engine captum --overwrite"):
        analyst(check=COUNT)


@pytest.mark.parametrize("factor", [float("nan"), 0.0])
def test_check_fails_where_captum_gives_nothing_to_compare_with(
    analyst: Analyst, engine: FakeAttributor, factor: float
) -> None:
    engine.captum_factor = factor
    with pytest.raises(CheckFailed, match="the scores differ from Captum's"):
        analyst(check=1)


def test_a_batch_that_does_not_fit_is_split(analyst: Analyst, engine: FakeAttributor) -> None:
    engine.largest_batch = 2
    analyst()
    assert analyst.dataset().shape == (COUNT, LAYERS, HIDDEN)
    assert sorted(engine.prompts) == sorted(map(tuple, analyst.prompts))


def test_a_prompt_that_does_not_fit_is_named(analyst: Analyst, engine: FakeAttributor) -> None:
    engine.largest_batch = 0
    with pytest.raises(LokiError, match=r"sample .*: out of memory on a prompt of \d tokens: lower --memory-budget"):
        analyst()


def test_until_stable_stops_early_and_where_it_would_have_without_an_interruption(
    analyst: Analyst, engine: FakeAttributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attribute(batch: Any, targets: Any) -> Any:
        """Every sample has much the same scores, so that the selection settles."""
        results = engine_attribute(batch, targets)
        common = torch.linspace(-5, 5, HIDDEN)
        return [replace(result, scores=result.scores + common) for result in results]

    engine_attribute = engine.attribute
    monkeypatch.setattr(engine, "attribute", attribute)
    write_prompts(analyst.data, 600)
    whole, stable = analyst.output, analyst.output.with_name("stable.h5")
    analyst()
    engine.prompts.clear()
    analysis = analyst(output=stable, until_stable=0.9, quotas=[20.0])
    assert 64 < analysis.samples == analysis.computed == len(engine.prompts) < 400
    assert overlap(select(whole, 20), select(stable, 20)) > 0.8
    before = stable.read_bytes()

    stable.unlink()
    engine.prompts.clear()
    for after in (30, 90, 95):
        engine.error, engine.error_after = KeyboardInterrupt(), after
        with pytest.raises(KeyboardInterrupt):
            analyst(output=stable, until_stable=0.9, quotas=[20.0])
    engine.error = None
    analyst(output=stable, until_stable=0.9, quotas=[20.0])
    assert len(engine.prompts) == analysis.samples
    assert stable.read_bytes() == before
    assert analyst(output=stable, until_stable=0.9, quotas=[20.0]).computed == 0
    for changes, named in (
        ({"until_stable": 0.8, "quotas": [20.0]}, r"until_stable 0\.9 and 0\.8"),
        ({"until_stable": 0.9, "quotas": [20.0, 30.0]}, r"quotas \[20\.0\] and \[20\.0, 30\.0\]"),
        ({}, r"until_stable 0\.9 and None"),
    ):
        with pytest.raises(LokiError, match=rf"exists already \({named}"):
            analyst(output=stable, **changes)
    with ScoresReader(stable) as reader:
        assert reader.provenance is not None
        assert len(reader.provenance.stopping["overlaps"]) >= 3
    assert analyst(output=stable, append=True).samples == 600
    assert analyst(output=stable, append=True).computed == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_size": 0}, "batch size 0 makes no sense"),
        ({"batch_size": "many"}, "batch size many makes no sense"),
        ({"dtype": "float8"}, "--dtype float8 is not known: use auto, float32"),
        ({"append": True, "until_stable": 0.9}, "--write-mode a adds all .* leave out one of them"),
        ({"settings": AttributionSettings(position=-4)}, r"sample .* has 3 tokens: position -4 is not in it: choose"),
        ({"check": -1}, "cannot check -1 samples"),
        ({"until_stable": 1.5}, "--until-stable 1.5 is out of range"),
        ({"until_stable": 0.9, "quotas": [0.0]}, "quota 0.0 is out of range"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"model": "no/such/model"}, "model directory no/such/model does not exist"),
        ({"data": "none.jsonl"}, "data none.jsonl does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_leaves_nothing_behind(analyst: Analyst, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(LokiError, match=problem):
        analyst(**changes)
    assert not analyst.output.parent.exists()


def test_a_directory_is_no_output(analyst: Analyst, tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="is a directory"):
        analyst(output=tmp_path)


def test_the_default_path_is_the_published_one() -> None:
    assert default_scores_path("meta-llama/Llama-3.1-8B") == Path("kva_result/hdf5/Llama-3.1-8B/kva_mmlu.h5")


def test_a_damaged_output_is_not_replaced(analyst: Analyst) -> None:
    data = write_scores(analyst.data.with_name("whole.h5"), np.zeros((3, LAYERS, HIDDEN), np.float32)).read_bytes()
    analyst.output.parent.mkdir()
    analyst.output.write_bytes(data[:2000])
    with pytest.raises(LokiError, match="truncated or damaged"):
        analyst()
    analyst(overwrite=True)
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


def test_real_engine_agrees_with_captum(llama_dir: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 6)
    for name, settings in {"fast": AttributionSettings(), "captum": AttributionSettings(engine="captum")}.items():
        analyse(llama_dir, str(tmp_path / "prompts.jsonl"), tmp_path / f"{name}.h5", settings, batch_size=3, check=2)
    with ScoresReader(tmp_path / "fast.h5") as fast, ScoresReader(tmp_path / "captum.h5") as captum:
        expected = captum.scores(0, 6)
        assert np.linalg.norm(fast.scores(0, 6) - expected) <= 1e-5 * np.linalg.norm(expected)
        assert fast.records.target_token_ids.tolist() == captum.records.target_token_ids.tolist()
