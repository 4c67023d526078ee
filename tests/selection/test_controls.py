"""Selection by weights against one-line references."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loki.artefacts.moments import MomentsOrigin, write_moments
from loki.errors import LokiError
from loki.models.checkpoint import fingerprint
from loki.selection.select import select
from loki.selection.strategies import SelectionSettings
from loki.selection.strategy import Inputs
from tests.tiny_models import save_tiny_model

LAYERS, HIDDEN, WIDTH = 3, 32, 48


def weights_of(model: Path) -> list[torch.Tensor]:
    tensors = load_file(model / "model.safetensors")
    return [tensors[f"model.layers.{layer}.mlp.down_proj.weight"].double() for layer in range(LAYERS)]


def write_squares(path: Path, squares: torch.Tensor, model: Path) -> Path:
    """A moments file with the mean squares `[L, d_ff]`; every other entry is there to be ignored."""
    origin = MomentsOrigin("m", fingerprint(model), "text", "digest", 1, 10, "float32", "0")
    moments = [torch.ones(1, WIDTH, WIDTH) for _ in range(LAYERS)]
    for moment, row in zip(moments, squares, strict=True):
        moment[0].fill_diagonal_(0)
        moment[0] += torch.diag(row)
    write_moments(path, moments, origin)
    return path


def lowest(scores: list[torch.Tensor], count: int) -> list[list[int]]:
    return [sorted(layer.argsort()[:count].tolist()) for layer in scores]


def test_magnitude(llama_dir: Path) -> None:
    norms = [weight.square().sum(dim=1).sqrt() for weight in weights_of(llama_dir)]
    assert select(Inputs(model=llama_dir), 25, SelectionSettings("magnitude")) == lowest(norms, 8)


def test_half_precision_makes_no_ties(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    norms = [weight.square().sum(dim=1) for weight in weights_of(model)]
    assert all(len(norm.bfloat16().unique()) < HIDDEN for norm in norms)
    for quota in (25, 50, 75):
        expected = lowest(norms, HIDDEN * quota // 100)
        assert select(Inputs(model=model), quota, SelectionSettings("magnitude")) == expected


def test_wanda(llama_dir: Path, tmp_path: Path) -> None:
    squares = torch.rand(LAYERS, WIDTH, generator=torch.Generator().manual_seed(0)) ** 8
    moments = write_squares(tmp_path / "moments.safetensors", squares, llama_dir)
    expected = [
        (weight.abs() * row.double().sqrt()).sum(dim=1)
        for weight, row in zip(weights_of(llama_dir), squares, strict=True)
    ]
    positions = select(Inputs(model=llama_dir, moments=moments), 25, SelectionSettings("wanda"))
    assert positions == lowest(expected, 8)
    assert positions != select(Inputs(model=llama_dir), 25, SelectionSettings("magnitude"))


def test_wanda_of_moments_of_another_width(llama_dir: Path, tmp_path: Path) -> None:
    moments = [torch.ones(1, WIDTH + 1, WIDTH + 1) for _ in range(LAYERS)]
    origin = MomentsOrigin("m", fingerprint(llama_dir), "text", "digest", 1, 10, "float32", "0")
    write_moments(tmp_path / "moments.safetensors", moments, origin)
    inputs = Inputs(model=llama_dir, moments=tmp_path / "moments.safetensors")
    with pytest.raises(LokiError, match=f"{WIDTH + 1} inputs in layer 0.*{WIDTH}"):
        select(inputs, 25, SelectionSettings("wanda"))


def test_excluded_rows_are_left_out(llama_dir: Path) -> None:
    first = select(Inputs(model=llama_dir), 25, SelectionSettings("magnitude"))
    norms = [weight.square().sum(dim=1) for weight in weights_of(llama_dir)]
    for layer, rows in zip(norms, first, strict=True):
        layer[rows] = torch.inf
    assert select(Inputs(model=llama_dir), 25, SelectionSettings("magnitude"), exclude=first) == lowest(norms, 8)
    with pytest.raises(LokiError, match="28 rows of 24"):
        select(Inputs(model=llama_dir), 90, SelectionSettings("magnitude"), exclude=first)


def test_random_needs_no_more_than_a_model(llama_dir: Path) -> None:
    positions = select(Inputs(model=llama_dir), 25, SelectionSettings("random", seed=3))
    assert [len(rows) for rows in positions] == [8] * LAYERS


def test_moments_of_another_model(llama_dir: Path, qwen2_dir: Path, tmp_path: Path) -> None:
    moments = write_squares(tmp_path / "moments.safetensors", torch.ones(LAYERS, WIDTH), qwen2_dir)
    with pytest.raises(LokiError, match=r"moments\.safetensors .*another model"):
        select(Inputs(model=llama_dir, moments=moments), 25, SelectionSettings("wanda"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights(llama_dir: Path, tmp_path: Path, value: float) -> None:
    from safetensors.torch import save_file

    tensors = load_file(llama_dir / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((llama_dir / "config.json").read_bytes())
    with pytest.raises(LokiError, match="layer 1"):
        select(Inputs(model=tmp_path), 25, SelectionSettings("magnitude"))


@pytest.mark.parametrize(
    ("strategy", "inputs", "missing"),
    [
        ("layer_balanced", Inputs(model="m"), "SCORES"),
        ("magnitude", Inputs(scores=Path("s")), "--model"),
        ("wanda", Inputs(model="m"), "--moments"),
        ("task_aware", Inputs(model="m"), "SCORES and --task"),
        ("random", Inputs(), "SCORES or --model"),
    ],
)
def test_missing_inputs(strategy: str, inputs: Inputs, missing: str) -> None:
    with pytest.raises(LokiError, match=f"strategy {strategy} needs {missing}"):
        select(inputs, 25, SelectionSettings(strategy))
