import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from rich.progress import Progress

from loki.analysis.analyse import analyse, default_scores_path
from loki.analysis.job import prepare
from loki.analysis.options import AnalysisOptions
from loki.analysis.work_folder import work_folder_of
from loki.artefacts.scores import ScoresReader
from loki.errors import CheckFailed, LokiError
from loki.kva.settings import AttributionSettings
from loki.models.checkpoint import fingerprint
from loki.ranks import Ranks
from tests.analysis.analyst import BATCH, COUNT, Analyst
from tests.analysis.calibration_files import write_prompts
from tests.analysis.fake_engine import HIDDEN, LAYERS, FakeAttributor, fake_attribution
from tests.artefacts.scores_files import write_scores
from tests.tiny_models import save_tiny_model


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


@pytest.mark.parametrize("field", ["id", "subject"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [("a\0b", r"'a\\x00b' .*null"), ("a\ud800b", r"surrogate .*'a\\ud800b'")],
    ids=["null", "surrogate"],
)
def test_what_a_scores_file_cannot_hold_is_refused_first(analyst: Analyst, field: str, text: str, problem: str) -> None:
    analyst.data.write_text(json.dumps({"input_ids": [9, 10], field: text}))
    with pytest.raises(LokiError, match=problem):
        analyst()
    assert not analyst.output.parent.exists()


def test_a_checkpoint_in_a_type_of_its_own_needs_a_choice(analyst: Analyst, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "double", dtype=torch.float64)
    with pytest.raises(LokiError, match=r"float64.* --dtype float32"):
        analyst(model=model)
    analyst(model=model, dtype="float32")


def test_a_model_is_not_spread_by_several_processes(llama_dir: Path) -> None:
    with pytest.raises(LokiError, match=r"--device-map auto .*2 processes"):
        prepare(llama_dir, "any.jsonl", AttributionSettings(), Ranks(0, 2), AnalysisOptions(device_map="auto"))


def test_two_processes_do_not_work_in_one_folder(analyst: Analyst) -> None:
    with work_folder_of(analyst.output).hold(), pytest.raises(LokiError, match="another process"):
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
    with pytest.raises(LokiError, match=r"\(definition paper and captum; .*--write-mode a"):
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
    with pytest.raises(LokiError, match=r"exists already .*how its scores"):
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
    with pytest.raises(LokiError, match=r"cannot add .*steps 7 and 9"):
        analyst(AttributionSettings(steps=9), append=True)
    write_prompts(analyst.data, COUNT, seed=1)
    with pytest.raises(LokiError, match="other tokens"):
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
    with pytest.raises(LokiError, match=r"sample .*18.*, layer 2: .*NaN"):
        analyst()
    assert not analyst.output.exists()


def test_check_recomputes_some_samples_with_captum(analyst: Analyst, engine: FakeAttributor) -> None:
    analyst(check=3)
    assert "captum" in engine.engines
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


def test_check_fails_before_anything_wrong_is_stored(analyst: Analyst, engine: FakeAttributor) -> None:
    engine.captum_factor = 1.001
    with pytest.raises(CheckFailed, match=r"sample .*Captum's by 0\.001"):
        analyst(check=1)
    assert len(engine.prompts) <= BATCH  # the batch with that sample is computed first
    assert not analyst.output.exists()
    assert not list(analyst.partial.glob("batches/*"))


def test_check_of_a_finished_file_looks_at_what_it_holds(analyst: Analyst, engine: FakeAttributor) -> None:
    analyst()
    engine.prompts.clear()
    assert analyst(check=5).computed == 0
    assert len(set(engine.checked)) == 5
    assert set(engine.checked) <= set(map(tuple, analyst.prompts))
    assert not engine.prompts
    with h5py.File(analyst.output, "a") as file:
        file["dataset"][7] *= 2
    with pytest.raises(CheckFailed, match=r":8: .*Captum's by 1 .*--engine captum --overwrite"):
        analyst(check=COUNT)


@pytest.mark.parametrize("factor", [float("nan"), 0.0])
def test_check_fails_where_captum_gives_nothing_to_compare_with(
    analyst: Analyst, engine: FakeAttributor, factor: float
) -> None:
    engine.captum_factor = factor
    with pytest.raises(CheckFailed, match="differ from Captum"):
        analyst(check=1)


def test_a_batch_that_does_not_fit_is_split(analyst: Analyst, engine: FakeAttributor) -> None:
    engine.largest_batch = 2
    analyst()
    assert analyst.dataset().shape == (COUNT, LAYERS, HIDDEN)
    assert sorted(engine.prompts) == sorted(map(tuple, analyst.prompts))


def test_a_prompt_that_does_not_fit_is_named(analyst: Analyst, engine: FakeAttributor) -> None:
    engine.largest_batch = 0
    with pytest.raises(LokiError, match=r"sample .*: out of memory .*\d tokens: .*--memory-budget"):
        analyst()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": "many"}, "batch size many"),
        ({"dtype": "float8"}, "--dtype float8 .*auto, float32"),
        ({"append": True, "until_stable": 0.9}, "--write-mode a .*--until-stable"),
        ({"settings": AttributionSettings(position=-4)}, "sample .* 3 tokens: position -4"),
        ({"check": -1}, "--check -1"),
        ({"until_stable": 1.5}, r"--until-stable 1\.5"),
        ({"until_stable": 0.9, "quotas": [0.0]}, r"quota 0\.0"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"model": "no/such/model"}, "no/such/model .*exist"),
        ({"data": "none.jsonl"}, r"none\.jsonl .*exist"),
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
    options = AnalysisOptions(batch_size=3, check=2)
    for name in ("fast", "captum"):
        settings = AttributionSettings(engine=name)
        analyse(llama_dir, str(tmp_path / "prompts.jsonl"), tmp_path / f"{name}.h5", settings, options)
    with ScoresReader(tmp_path / "fast.h5") as fast, ScoresReader(tmp_path / "captum.h5") as captum:
        expected = captum.scores(0, 6)
        assert np.linalg.norm(fast.scores(0, 6) - expected) <= 1e-5 * np.linalg.norm(expected)
        assert fast.records.target_token_ids.tolist() == captum.records.target_token_ids.tolist()


def test_sampled_tokens_of_another_seed_are_other_scores(llama_dir: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 2)
    of_model = (llama_dir, str(tmp_path / "prompts.jsonl"), tmp_path / "scores.h5")
    analyse(*of_model, AttributionSettings(definition="sensitivity"))
    for append in (False, True):
        with pytest.raises(LokiError, match="seed 1"):
            analyse(*of_model, AttributionSettings(definition="sensitivity", seed=1), append=append)
