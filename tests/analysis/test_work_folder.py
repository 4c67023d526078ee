import json
import os
from pathlib import Path

import numpy as np
import pytest

from loki.analysis.work_folder import BatchResults, WorkFolder, work_folder_of
from loki.artefacts.expert_scores import ExpertScores
from loki.errors import LokiError

RESULTS = BatchResults(
    indices=np.array([4, 2]),
    scores=np.arange(12, dtype=np.float32).reshape(2, 2, 3),
    targets=np.array([7, 8]),
    probabilities=np.array([0.5, 0.25]),
    completeness=np.array([0.1, 0.2]),
    experts=ExpertScores(4, np.array([[0, 1, 3]]), np.ones((1, 3), np.float32)),
)


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    return work_folder_of(tmp_path / "scores.h5")


def test_batches_come_back_as_they_were(work: WorkFolder) -> None:
    with work.hold():
        work.begin({}, overwrite=False)
        work.write_batch(3, RESULTS)
        assert work.stored_batches() == {3}
        found = work.read_batch(3)
        for name in ("indices", "scores", "targets", "probabilities", "completeness"):
            np.testing.assert_array_equal(getattr(found, name), getattr(RESULTS, name))
        for name, value in vars(found.experts).items():
            np.testing.assert_array_equal(value, getattr(RESULTS.experts, name))
        work.delete_batch(3)
        with pytest.raises(LokiError, match=r"00000003\.npz .*damaged"):
            work.read_batch(3)


def test_what_stands_where_batches_and_record_were(work: WorkFolder) -> None:
    with work.hold():
        work.begin({}, overwrite=False)
        os.mkfifo(work.path / "batches" / "00000000.npz")
        with pytest.raises(LokiError, match=r"00000000\.npz"):
            work.read_batch(0)
        for name, value in (("batch_size", [None]), ("batch_size", 0), ("memory_budget", "1")):
            (work.path / "run.json").write_text(json.dumps({name: value}))
            with pytest.raises(LokiError, match=name):
                work.begin({}, overwrite=False)


def test_a_run_that_was_begun_stays_and_another_does_not(work: WorkFolder) -> None:
    with work.hold():
        pass
    assert not work.path.exists()
    with work.hold():
        assert work.begin({"steps": 7}, overwrite=False) == {}
        work.record({"steps": 7, "batch_size": 4})
    with work.hold():
        assert work.begin({"steps": 7}, overwrite=False) == {"steps": 7, "batch_size": 4}
        with pytest.raises(LokiError, match="steps 7 and 9"):
            work.begin({"steps": 9}, overwrite=False)
        assert work.begin({"steps": "auto"}, overwrite=False)
        assert work.begin({"steps": 9}, overwrite=True) == {}
    assert not work.path.exists()


def test_stopping_ends_with_the_next_attempt(work: WorkFolder) -> None:
    with work.hold():
        work.begin({}, overwrite=False)
        work.record({})
        assert not work.stopped
        work.stop()
        assert work.stopped
        work.begin({}, overwrite=False)
        assert not work.stopped


def test_a_lock_whose_file_was_removed_is_not_held(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes, and removes the folder, between the opening of its lock and the locking."""
    from loki.analysis import work_folder

    take, removed = work_folder.lock, []

    def remove_first(file) -> None:
        if not removed:
            removed.append(True)
            (work.path / "lock").unlink()
            work.path.rmdir()
        take(file)

    monkeypatch.setattr(work_folder, "lock", remove_first)
    with work.hold():
        assert (work.path / "lock").exists()
        with pytest.raises(LokiError, match="another process"), WorkFolder(work.path).hold():
            pass
