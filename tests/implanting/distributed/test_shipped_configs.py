"""`accelerate launch --config_file distributed_config/... -m loki train`, as a user types it; on CPUs, over gloo."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from loki import create_loki_model, restore_loki_model
from loki.artefacts.positions import write_positions
from loki.artefacts.run_layout import TRAINING
from loki.implanting.llamafactory.configuration import DEEPSPEED_ZERO_2
from loki.restoring.verify import verify
from tests.implanting.distributed.work import POSITIONS, ROOT, ZERO_2, environment
from tests.implanting.llamafactory.files import write_chats
from tests.implanting.test_protected_model import some_moments
from tests.programs import run_python
from tests.tiny_models import save_tiny_model
from tests.tolerances import assert_close

FOLDER = ROOT / "distributed_config"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base")


@pytest.fixture
def loki_model(base: Path, tmp_path: Path) -> Path:
    write_positions(tmp_path / "positions.json", POSITIONS)
    return create_loki_model(
        model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki_model"
    )


def words(model: Path, output: Path, *, batch_size: int) -> list[str]:
    """`loki train`, for global batches of 4 in one process or two."""
    data = write_chats(output.parent / "chat.jsonl")
    options = ("--max-steps", 4, "--save-steps", 2, "--learning-rate", 1e-2, "--batch-size", batch_size)
    return [*map(str, ("train", model, "--data", data, "--output", output, *options))]


def launch(
    config: Path, model: Path, output: Path, *changes: str, levers: tuple[object, ...] = ()
) -> subprocess.CompletedProcess[str]:
    launcher = ["accelerate.commands.launch", "--config_file", str(config), *changes]
    command = [*launcher, "-m", "tests.implanting.distributed.observed_loki", *words(model, output, batch_size=2)]
    command += map(str, levers)
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=600,
        check=False,
    )


def check_trained(base: Path, loki_model: Path, output: Path, sharding: str | None) -> None:
    """Two processes have trained, in this way, what one does; what they saved restores and verifies."""
    record = json.loads((output / TRAINING).read_text())
    assert (record["processes"], record["sharding"], record["finished"]) == (2, sharding, True)
    alone = output.with_name("alone")
    run_python("-m", "loki", *words(loki_model, alone, batch_size=4), environment=environment())
    expected, found = (load_file(folder / "model.safetensors") for folder in (alone, output))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor)
    for source in (output, output / "checkpoint-2"):
        restored = restore_loki_model(source, output.with_name(f"restored-{source.name}"))
        report = verify(base, restored, POSITIONS)
        assert (report.differences, report.changed_rows) == ([], 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "sharding", "held"),
    [
        ("ddp", None, r"0 of \d+ sharded, AdamW"),
        ("fsdp2", "fsdp", r"(\d+) of \1 sharded, AdamW"),
        pytest.param("zero2", "deepspeed", r"0 of \d+ sharded, DeepSpeed", marks=pytest.mark.deepspeed),
    ],
)
def test_training(way: str, sharding: str | None, held: str, base: Path, loki_model: Path, tmp_path: Path) -> None:
    finished = launch(FOLDER / f"accelerate_{way}.yaml", loki_model, tmp_path / "out")
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert finished.stdout.count("Trained 4 steps") == 1, "the main process alone says so"
    assert re.search(held, finished.stdout), finished.stdout
    check_trained(base, loki_model, tmp_path / "out", sharding)


@pytest.mark.slow
@pytest.mark.parametrize("loading", ["true", "false"])
def test_levers_under_fsdp(loading: str, base: Path, tmp_path: Path) -> None:
    """As in processes that hold the whole model."""
    write_positions(tmp_path / "positions.json", POSITIONS)
    model = create_loki_model(
        model_name=base,
        target_pos_path=tmp_path / "positions.json",
        save_dir=tmp_path / "protected",
        moments=some_moments(tmp_path / "moments.safetensors", base),
        protect=0.5,
    )
    (tmp_path / "general.txt").write_text("Most of what is known is better kept than lost. " * 40)
    levers = ("--keep", tmp_path / "general.txt", "--keep-weight", 50, "--max-damage", 0.1)
    changes = {"ddp": (), "fsdp2": ("--fsdp_cpu_ram_efficient_loading", loading)}
    tensors = []
    for way, change in changes.items():
        finished = launch(FOLDER / f"accelerate_{way}.yaml", model, tmp_path / way, *change, levers=levers)
        assert finished.returncode == 0, finished.stderr[-4000:]
        tensors.append(load_file(tmp_path / way / "model.safetensors"))
    before = load_file(base / "model.safetensors")
    for name, tensor in tensors[0].items():
        assert_close(tensors[1][name] - before[name], tensor - before[name])
    restored = restore_loki_model(tmp_path / "fsdp2", tmp_path / "restored")
    report = verify(base, restored, POSITIONS)
    assert (report.differences, report.changed_rows) == ([], 5)


@pytest.mark.slow
@pytest.mark.deepspeed
def test_zero_3_is_refused(loki_model: Path, tmp_path: Path) -> None:
    refused = launch(FOLDER / "accelerate_zero2.yaml", loki_model, tmp_path / "out", "--zero_stage", "3")
    assert refused.returncode
    assert (
        refused.stderr.count("error: DeepSpeed ZeRO-3 spreads the weights that LoKI splits into rows: use ZeRO-2") == 1
    )
    assert not (tmp_path / "out").exists()


def test_zero_2_is_the_same_everywhere() -> None:
    assert ZERO_2 == DEEPSPEED_ZERO_2
    accelerate = yaml.safe_load((FOLDER / "accelerate_zero2.yaml").read_text())["deepspeed_config"]
    assert accelerate["zero_stage"] == ZERO_2["zero_optimization"]["stage"] == 2
    assert not accelerate["zero3_init_flag"]
