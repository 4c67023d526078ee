"""A sweep over scales measures the models that `restore --scale` writes, and chooses the least damage."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loki import restore_loki_model
from loki.errors import LokiError
from loki.evaluation.scale_sweep import ScalePoint, ScaleSweep, sweep_scales
from loki.models.loading import load_tokenizer
from loki.report.scale_curve import plot_scales, scale_table
from tests.restoring.test_adapter import save_adapter
from tests.restoring.test_restore import trained


@pytest.fixture
def data(tmp_path: Path) -> Path:
    records = [{"prompt": f"{a} + 1 =", "completion": f" {a + 1}"} for a in range(4)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "general.txt").write_text("What was known before is to be known after. ")
    return tmp_path / "new.jsonl"


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_every_point_is_what_restoring_with_its_scale_gives(
    llama_dir: Path, data: Path, tmp_path: Path, kind: str
) -> None:
    checkpoint = trained(tmp_path, llama_dir) if kind == "model" else tmp_path / "adapter"
    if kind == "adapter":
        save_adapter(llama_dir, checkpoint)
    sweep = sweep_scales(checkpoint, data, str(tmp_path / "general.txt"), scales=(1.0, 0.4))
    assert [point.scale for point in sweep.points] == [0.4, 1.0]
    tokenizer = load_tokenizer(llama_dir)
    ids = torch.tensor([tokenizer((tmp_path / "general.txt").read_text())["input_ids"]])
    base = AutoModelForCausalLM.from_pretrained(llama_dir)
    for point in sweep.points:
        folder = restore_loki_model(checkpoint, tmp_path / f"{point.scale}", scale=point.scale)
        with torch.no_grad():
            before = base(ids).logits.double().log_softmax(-1)
            after = AutoModelForCausalLM.from_pretrained(folder)(ids).logits.double().log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean()
        assert point.kl == pytest.approx(float(kl), rel=1e-4, abs=1e-9)
    assert sweep.points[0].kl < sweep.points[1].kl


def test_the_choice_is_the_least_damage_within_the_tolerance(tmp_path: Path) -> None:
    points = [
        ScalePoint(0.2, 0.5, 1.0, 0.01),
        ScalePoint(0.6, 0.96, 0.3, 0.05),
        ScalePoint(0.8, 0.97, 0.2, 0.08),
        ScalePoint(1.0, 0.965, 0.2, 0.2),
    ]
    assert ScaleSweep(points, 0.0).chosen.scale == 0.8
    assert ScaleSweep(points, 0.01).chosen.scale == 0.6
    assert ScaleSweep(points, 1.0).chosen.scale == 0.2
    assert "| 0.6 | 0.960 | 0.300 | 0.05 |" in scale_table(ScaleSweep(points, 0.0)).markdown()
    plot_scales(ScaleSweep(points, 0.0), tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input(data: Path, tmp_path: Path) -> None:
    for options, match in (
        ({"scales": (0.0, 1.0)}, "--scale 0 gives back"),
        ({"scales": (0.5, 1.5)}, "--scale 1.5"),
        ({"scales": ()}, "at least one"),
        ({"scales": (0.5, 0.5)}, "each once"),
        ({"tolerance": -0.1}, "--tolerance -0.1"),
    ):
        with pytest.raises(LokiError, match=match):
            sweep_scales(tmp_path / "nothing", data, "general.txt", **options)
