"""What the pictures show, read back from the figures."""

from pathlib import Path

import numpy as np
import pytest

from loki.errors import LokiError
from loki.report.result_figures import ablation_figure, forgetting_figure, pareto_figure, read_ablation
from loki.report.score_figures import (
    distribution_figure,
    extremes_figure,
    mean_scores,
    overlap_figure,
    stability_figure,
    subject_selections,
)
from tests.artefacts.scores_files import write_scores


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Six samples of 2 layers with 20 rows; all the highest scores are in the second layer, the lowest in the first."""
    values = np.random.default_rng(0).normal(size=(6, 2, 20)).astype(np.float32)
    values[:, 0] -= 10
    values[:, 1] += 10
    return write_scores(tmp_path / "scores.h5", values)


def test_extremes_lie_where_they_are(scores: Path) -> None:
    [axes] = extremes_figure(scores, quota=10).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [0, 20, 20, 0]  # percent of a layer's rows: highest by layer, then lowest by layer


def test_distribution_shows_the_median(scores: Path) -> None:
    [axes] = distribution_figure(scores).axes
    assert np.array_equal(axes.lines[0].get_ydata(), np.median(mean_scores(scores), axis=1))


def test_overlap_is_symmetric_for_equal_sizes_and_whole_on_the_diagonal() -> None:
    figure = overlap_figure({"a": [[0, 1], [2, 3]], "b": [[0, 5], [2, 3]], "c": [[8, 9], [8, 9]]})
    values = figure.axes[0].images[0].get_array()
    assert np.array_equal(values, [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]])
    with pytest.raises(LokiError, match="two selections"):
        overlap_figure({"a": [[0]]})


def test_subjects_of_a_file(scores: Path, tmp_path: Path) -> None:
    found = subject_selections(scores, 10)
    assert set(found) == {"maths", "history"}
    assert all([len(rows) for rows in positions] == [2, 2] for positions in found.values())
    alone = write_scores(tmp_path / "one.h5", np.ones((2, 2, 20), np.float32), subjects=["maths", "maths"])
    with pytest.raises(LokiError, match="1 subjects"):
        subject_selections(alone, 10)


def test_stability_ends_at_all_samples(scores: Path) -> None:
    [axes] = stability_figure(scores).axes
    x, y = axes.lines[0].get_data()
    assert list(x)[-1] == 6
    assert y[-1] == 1
    assert all(0 <= value <= 1 for value in y)


def test_ablation_curves() -> None:
    orders = ("lowest signed", "highest signed", "lowest absolute", "highest absolute")
    points = [
        {"order": order, "seed": None, "quota": quota, "loss": 2.0 + quota * number, "scores": {}}
        for number, order in enumerate(orders)
        for quota in (1, 10)
    ]
    points += [{"order": "random", "seed": 0, "quota": quota, "loss": 2.5, "scores": {}} for quota in (1, 10)]
    [axes] = ablation_figure(read_ablation({"base_loss": 2.0, "base_scores": {}, "points": points})).axes
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert curves == {
        "lowest signed": [0, 0],
        "highest signed": [1, 10],
        "lowest absolute": [2, 20],
        "highest absolute": [3, 30],
        "random draws": [0.5, 0.5],
    }
    with pytest.raises(LokiError, match="no ablation"):
        read_ablation([])


def compared(new: str, percent: float, right: float) -> dict[str, object]:
    lost = {"percent": percent, "interval": {"low": percent - 1, "high": percent + 2}}
    return {
        "new": new,
        "forgetting": {**lost, "tasks": {"quiz": lost, "none": {"percent": None, "interval": None}}},
        "data": {"right": {"new": right}},
        "texts": [{"kl": {"kl": 0.3}}],
    }


def test_forgetting_bars() -> None:
    [axes] = forgetting_figure([compared("a/b/c", 3.0, 1), compared("d", -1.0, 1)]).axes
    assert [bar.get_height() for bar in axes.patches] == [3, 3, -1, -1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["quiz", "all tasks"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["b/c", "d"]


def test_pareto_falls_back_to_kl() -> None:
    points = [compared("a", 3.0, 0.9), compared("b", 1.0, 0.8)]
    [axes] = pareto_figure(points).axes
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines] == [(3.0, 0.9), (1.0, 0.8)]
    points[1]["forgetting"] = None
    [axes] = pareto_figure(points).axes
    assert [line.get_xdata()[0] for line in axes.lines] == [0.3, 0.3]
    points[1]["data"] = None
    with pytest.raises(LokiError, match=r"with b .*new task"):
        pareto_figure(points)
