"""The suppression ablation: in memory it is what suppressing on disk is, and it leaves no trace."""

from pathlib import Path

import numpy as np
import pytest
import torch

from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.evaluation.ablation import Ablation, AblationOptions, AblationPoint, ablate, zeroed
from loki.evaluation.options import MeasureOptions
from loki.evaluation.subjects import find_subject
from loki.metrics.text import text_loss
from loki.models.loading import load_model, load_tokenizer
from loki.restoring.suppress import set_zero_weights
from tests.artefacts.scores_files import write_scores

TEXT = "Some words to be predicted, again and again. " * 9


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Scores in which row r of each layer has the absolute value r, with alternating sign."""
    rows = np.arange(32, dtype=np.float32) * np.where(np.arange(32) % 2, -1, 1)
    return write_scores(tmp_path / "scores.h5", np.broadcast_to(rows, (4, 3, 32)).astype(np.float32).copy())


def test_equals_suppressing_on_disk(llama_dir: Path, scores: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    found = ablate(find_subject(llama_dir), scores, AblationOptions((10,), (0,)), MeasureOptions(texts=(text,)))
    rows = {
        "lowest signed": [27, 29, 31],
        "highest signed": [26, 28, 30],
        "lowest absolute": [0, 1, 2],
        "highest absolute": [29, 30, 31],
    }
    tokenizer = load_tokenizer(llama_dir)
    assert found.base_loss == text_loss(load_model(llama_dir), tokenizer, [TEXT]).loss
    for order, selected in rows.items():
        write_positions(tmp_path / "positions.json", [selected] * 3, overwrite=True)
        suppressed = set_zero_weights(llama_dir, tmp_path / "positions.json", tmp_path / "zero", overwrite=True)
        expected = text_loss(load_model(suppressed), tokenizer, [TEXT]).loss - found.base_loss
        assert found.rise(order, 10) == expected, order
    assert [(point.order, point.seed) for point in found.points[4:]] == [("random", 0)]


@pytest.mark.parametrize("fails", [True, False])
def test_leaves_no_trace(fails: bool, llama_dir: Path) -> None:
    model = load_model(llama_dir)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    try:
        with zeroed(model, [[0, 3], [], [7]]):
            assert not model.model.layers[2].mlp.down_proj.weight[7].any()
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def curves(low: float, high: float, random: tuple[float, float, float]) -> Ablation:
    rises = {"lowest absolute": [low], "highest absolute": [high], "lowest signed": [high], "highest signed": [high]}
    points = [AblationPoint(order, None, 10, 3.0 + rise) for order, [rise] in rises.items()]
    points += [AblationPoint("random", seed, 10, 3.0 + rise) for seed, rise in enumerate(random)]
    return Ablation(3.0, {}, tuple(points))


def test_scores_separate_if_high_rows_cost_and_low_rows_do_not() -> None:
    found = curves(low=0.05, high=8.0, random=(0.1, 5.0, 0.4))
    assert found.separates("absolute")
    assert not found.separates("signed")  # the lowest cost as much as the highest
    assert "Absolute scores separate" in found.sentences()[1]
    assert "random rows 0.4" in found.sentences()[1]  # the median of the draws
    assert "Signed scores do not separate" in found.sentences()[0]
    assert not curves(low=0.4, high=8.0, random=(0.3, 0.3, 0.3)).separates("absolute")
    assert not curves(low=0.05, high=0.06, random=(0.3, 0.3, 0.3)).separates("absolute")


def test_scores_of_another_model_are_refused(llama_dir: Path, tmp_path: Path) -> None:
    other = write_scores(tmp_path / "scores.h5", np.ones((2, 4, 32), np.float32))
    with pytest.raises(LokiError, match=r"4 layers.* 3"):
        ablate(find_subject(llama_dir), other, AblationOptions((10,)))
    with pytest.raises(LokiError, match="at least one quota"):
        ablate(find_subject(llama_dir), other, AblationOptions(()))
