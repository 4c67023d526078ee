from pathlib import Path

import h5py
import numpy as np
import pytest

from loki.analysis.inspect_scores import inspect_scores
from loki.errors import LokiError
from loki.selection.overlap import overlap
from tests.artefacts.scores_files import make_provenance, write_scores
from tests.selection.reference import naive_layer_balanced

SCORES = np.random.default_rng(0).normal(size=(41, 3, 20)).astype(np.float32)
SUBJECTS = (["maths"] * 5 + ["history", "", "maths", "law"] * 9)[:41]


@pytest.fixture
def scores_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("loki.artefacts.scores._READ_BYTES", 7 * 4 * 3 * 20)  # several chunks, of an odd length
    return write_scores(tmp_path / "scores.h5", SCORES, subjects=SUBJECTS)


def test_statistics_are_those_of_the_whole_array(scores_file: Path) -> None:
    found = inspect_scores(scores_file)
    assert (found.samples, found.layers, found.hidden, found.provenance) == (41, 3, 20, make_provenance())
    for layer, statistics in enumerate(found.statistics):
        of_layer = SCORES[:, layer].astype(np.float64)
        expected = (of_layer.mean(), of_layer.std(), of_layer.min(), of_layer.max(), (of_layer < 0).mean())
        np.testing.assert_allclose(list(vars(statistics).values()), expected, rtol=1e-12)


def test_extreme_rows_by_mean_score(scores_file: Path) -> None:
    found = inspect_scores(scores_file, rows=4)
    means = SCORES.astype(np.float64).mean(axis=0)
    ranked = np.sort(means, axis=None)
    np.testing.assert_allclose([row.mean for row in found.most_important], ranked[::-1][:4])
    np.testing.assert_allclose([row.mean for row in found.least_important], ranked[:4])
    for row in found.most_important + found.least_important:
        np.testing.assert_allclose(means[row.layer, row.index], row.mean)


def test_overlap_of_halves_and_subjects(scores_file: Path) -> None:
    found = inspect_scores(scores_file, quota=25)
    halves = [naive_layer_balanced(SCORES[start::2], 5) for start in (0, 1)]
    assert found.halves == overlap(*halves)
    everything = naive_layer_balanced(SCORES, 5)
    assert found.subjects.keys() == {"maths", "history", "law"}
    for subject, (value, samples) in found.subjects.items():
        chosen = SCORES[[index for index, name in enumerate(SUBJECTS) if name == subject]]
        assert samples == len(chosen)
        assert value == overlap(naive_layer_balanced(chosen, 5), everything)


def test_overlap_of_every_two_subjects(scores_file: Path) -> None:
    selections = [
        naive_layer_balanced(SCORES[[name == subject for name in SUBJECTS]], 5)
        for subject in ("maths", "history", "law")
    ]
    values = [overlap(selections[first], selections[second]) for first, second in ((0, 1), (0, 2), (1, 2))]
    assert inspect_scores(scores_file, quota=25).pairs == (min(values), pytest.approx(np.mean(values)))


def test_published_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "published.h5", "w") as file:
        file.create_dataset("dataset", data=SCORES[:1].astype(np.float16))
    found = inspect_scores(tmp_path / "published.h5")
    assert (found.provenance, found.halves, found.subjects) == (None, None, {})
    assert np.isnan(found.completeness)


def test_bad_input(tmp_path: Path, scores_file: Path) -> None:
    with pytest.raises(LokiError, match="no samples"):
        inspect_scores(write_scores(tmp_path / "empty.h5", SCORES[:0]))
    with pytest.raises(LokiError, match="quota 0 "):
        inspect_scores(scores_file, quota=0)
    with pytest.raises(LokiError, match="--rows -90"):
        inspect_scores(scores_file, rows=-90)
