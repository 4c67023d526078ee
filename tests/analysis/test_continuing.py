"""Analyses that were interrupted."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from loki.kva.settings import AttributionSettings
from loki.selection.overlap import overlap
from loki.selection.select import select
from tests.analysis.analyst import BATCH, COUNT, Analyst
from tests.analysis.calibration_files import write_prompts
from tests.analysis.fake_engine import HIDDEN, FakeAttributor


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
    monkeypatch.setattr("loki.analysis.job.auto_batch_size", lambda *_: BATCH)
    engine.error, engine.error_after = KeyboardInterrupt(), 10
    with pytest.raises(KeyboardInterrupt):
        analyst(batch_size="auto")
    engine.error = None
    monkeypatch.setattr("loki.analysis.job.auto_batch_size", lambda *_: 9)
    analyst(batch_size="auto")
    np.testing.assert_array_equal(analyst.dataset(), analyst.expected())


def test_continuing_uses_the_memory_budget_of_the_interrupted_run(
    interrupted: Analyst, engine: FakeAttributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loki.analysis.batch_computer.free_memory", lambda _: 2**20)
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
        with pytest.raises(LokiError, match=r"scores\.h5 .*written .*free some space"):
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
    with pytest.raises(LokiError, match=rf"{stored.name} .*damaged .*: remove it"):
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
        ({"subjects": ["maths"]}, "other calibration data; samples 37 and 18"),
        ({"until_stable": 0.9}, r"until_stable None and \[0.9, 10.0\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_continuing_with_other_settings_is_refused(
    interrupted: Analyst, engine: FakeAttributor, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(LokiError, match=rf"interrupted run .*\(.*{named}"):
        interrupted(**changes)
    assert not engine.prompts
    interrupted()
    np.testing.assert_array_equal(interrupted.dataset(), interrupted.expected())


def test_continuing_with_another_model_or_other_data_is_refused(interrupted: Analyst, qwen2_dir: Path) -> None:
    with pytest.raises(LokiError, match="other weights of the model"):
        interrupted(model=qwen2_dir)
    write_prompts(interrupted.data, COUNT, seed=1)
    with pytest.raises(LokiError, match="other calibration data"):
        interrupted()


def test_continuing_with_another_configuration_is_refused(interrupted: Analyst, tmp_path: Path) -> None:
    """What is said of the model without changing what it computes does not matter, nor how the data is named."""
    copy = shutil.copytree(interrupted.model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    renamed = {**config, "_name_or_path": "other", "transformers_version": "0.0", "use_cache": False}
    (copy / "config.json").write_text(json.dumps({**renamed, "rms_norm_eps": 0.1}))
    with pytest.raises(LokiError, match="other configuration of the model"):
        interrupted(model=copy)
    (copy / "config.json").write_text(json.dumps(renamed))
    interrupted(model=copy, data=os.path.relpath(interrupted.data))
    np.testing.assert_array_equal(interrupted.dataset(), interrupted.expected())


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


def test_check_looks_at_batches_of_an_interrupted_run_too(interrupted: Analyst, engine: FakeAttributor) -> None:
    interrupted(check=COUNT)
    assert sorted(engine.checked) == sorted(map(tuple, interrupted.prompts))
    assert len(engine.prompts) <= COUNT - 20  # what was stored is not computed again


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
