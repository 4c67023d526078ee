"""Two processes train what one does, with everything that users share the work with; on CPUs, over gloo."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loki import create_loki_model, restore_loki_model
from loki.artefacts.positions import write_positions
from loki.restoring.verify import verify
from tests.implanting.distributed.work import POSITIONS, Work, do
from tests.implanting.test_protected_model import some_moments
from tests.tiny_models import save_tiny_model
from tests.tolerances import assert_close

pytestmark = pytest.mark.slow

WAYS: list[Any] = [
    pytest.param({"way": "ddp"}, id="ddp"),
    pytest.param({"way": "fsdp2"}, id="fsdp2"),
    pytest.param({"way": "fsdp2", "load_on_rank_0": True}, id="fsdp2-loaded-on-rank-0"),
    pytest.param({"way": "zero2"}, id="zero2", marks=pytest.mark.deepspeed),
]


def directories(folder: Path, dtype: torch.dtype) -> tuple[str, str]:
    base = save_tiny_model(folder / "base", "llama", dtype=dtype)
    write_positions(folder / "positions.json", POSITIONS)
    made = create_loki_model(model_name=base, target_pos_path=folder / "positions.json", save_dir=folder / "loki")
    return str(base), str(made)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An ordinary model and the LoKI model made of it."""
    return directories(tmp_path_factory.mktemp("models"), torch.float32)


@pytest.fixture(scope="module")
def bf16_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The same in bfloat16."""
    return directories(tmp_path_factory.mktemp("bf16-models"), torch.bfloat16)


@pytest.fixture(scope="module")
def trained_alone(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains with TRL."""
    output = tmp_path_factory.mktemp("alone") / "out"
    do(Work(models[1], str(output), guarded=True))
    return output / "final"


@pytest.fixture(scope="module")
def adapter_trained_alone(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter that one process trains with Transformers' Trainer."""
    output = tmp_path_factory.mktemp("adapter-alone") / "out"
    do(Work(models[0], str(output), adapter=True, trainer="trainer"))
    return output / "final"


@pytest.fixture(scope="module")
def protected_model(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoKI model whose rows change along half of the input directions."""
    base, folder = Path(models[0]), tmp_path_factory.mktemp("protected")
    write_positions(folder / "positions.json", POSITIONS)
    moments = some_moments(folder / "moments.safetensors", base)
    made = create_loki_model(
        model_name=base,
        target_pos_path=folder / "positions.json",
        save_dir=folder / "loki",
        moments=moments,
        protect=0.5,
    )
    return str(made)


@pytest.fixture(scope="module")
def protected_trained_alone(protected_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains of it."""
    output = tmp_path_factory.mktemp("protected-alone") / "out"
    do(Work(protected_model, str(output), guarded=True))
    return output / "final"


def check_facts(facts: list[dict[str, Any]], way: str) -> None:
    """Two processes took part, and really shared the work in this way."""
    assert len(facts) == 2
    for noted in facts:
        assert noted["sharded"] == (noted["parameters"] if way == "fsdp2" else 0)
        assert ("DeepSpeed" in noted["optimizer"]) == (way == "zero2")


@pytest.mark.parametrize("how", WAYS)
def test_a_model_directory(how: dict[str, Any], models: tuple[str, str], trained_alone: Path, tmp_path: Path) -> None:
    base, loki_model = models
    facts = do(Work(loki_model, str(tmp_path / "out"), guarded=True, **how))
    check_facts(facts, how["way"])
    assert all("active_" in name for noted in facts for name in noted["trainable"])
    assert len(facts[0]["trainable"]) == 2

    before, alone = load_file(Path(base) / "model.safetensors"), load_file(trained_alone / "model.safetensors")
    for folder in ("final", "checkpoint-4"):
        tensors = load_file(tmp_path / "out" / folder / "model.safetensors")
        assert tensors.keys() == alone.keys()
        for layer, rows in enumerate(POSITIONS):
            name = f"model.layers.{layer}.mlp.down_proj.weight"
            if rows:  # what training added, not what was there
                assert_close(tensors[name][rows] - before[name][rows], alone[name][rows] - before[name][rows])

    for source in ("final", "checkpoint-2"):
        restored = restore_loki_model(tmp_path / "out" / source, tmp_path / f"restored-{source}", base_model=base)
        report = verify(base, restored, POSITIONS)
        assert (report.differences, report.changed_rows) == ([], 5)


@pytest.mark.parametrize("how", WAYS)
def test_rows_along_directions(
    how: dict[str, Any], models: tuple[str, str], protected_model: str, protected_trained_alone: Path, tmp_path: Path
) -> None:
    base = Path(models[0])
    facts = do(Work(protected_model, str(tmp_path / "out"), guarded=True, **how))
    check_facts(facts, how["way"])
    assert all("active_coefficients" in name for noted in facts for name in noted["trainable"])
    before, alone = (load_file(folder / "model.safetensors") for folder in (base, protected_trained_alone))
    for folder in ("final", "checkpoint-4"):
        tensors = load_file(tmp_path / "out" / folder / "model.safetensors")
        assert tensors.keys() == alone.keys()
        for layer, rows in enumerate(POSITIONS):
            name = f"model.layers.{layer}.mlp.down_proj.weight"
            if rows:
                expected = alone[name][rows] - before[name][rows]
                assert expected.norm() > 0.01
                assert_close(tensors[name][rows] - before[name][rows], expected)
    restored = restore_loki_model(tmp_path / "out" / "checkpoint-2", tmp_path / "restored", base_model=base)
    report = verify(base, restored, POSITIONS)
    assert (report.differences, report.changed_rows) == ([], 5)
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    do(Work(protected_model, str(tmp_path / "resumed"), guarded=True, resume=checkpoint, **how))
    parts, whole = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("resumed", "out"))
    for name, tensor in whole.items():
        assert_close(parts[name], tensor)


@pytest.mark.parametrize("how", WAYS)
def test_an_adapter(how: dict[str, Any], models: tuple[str, str], adapter_trained_alone: Path, tmp_path: Path) -> None:
    base = models[0]
    facts = do(Work(base, str(tmp_path / "out"), adapter=True, trainer="trainer", **how))
    check_facts(facts, how["way"])
    assert all("loki_delta" in name for noted in facts for name in noted["trainable"])

    alone = load_file(adapter_trained_alone / "adapter_model.safetensors")
    for folder in ("final", "checkpoint-4"):
        tensors = load_file(tmp_path / "out" / folder / "adapter_model.safetensors")
        assert tensors.keys() == alone.keys()
        for name, tensor in tensors.items():
            assert_close(tensor, alone[name])
    restored = restore_loki_model(tmp_path / "out" / "final", tmp_path / "restored", base_model=base)
    report = verify(base, restored, POSITIONS)
    assert (report.differences, report.changed_rows) == ([], 5)


@pytest.mark.parametrize("how", WAYS)
def test_resuming_is_exact(how: dict[str, Any], bf16_models: tuple[str, str], tmp_path: Path) -> None:
    base, loki_model = bf16_models  # rows are trained in float32: rounding them in a checkpoint would show
    output = tmp_path / "out"
    work = Work(loki_model, str(output), guarded=True, bf16=True, **how)
    do(work)
    whole = load_file(output / "final" / "model.safetensors")
    work.output, work.resume = str(tmp_path / "resumed"), str(output / "checkpoint-2")
    do(work)
    resumed = load_file(tmp_path / "resumed" / "final" / "model.safetensors")
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    assert verify(base, tmp_path / "resumed" / "final", POSITIONS).differences == []
