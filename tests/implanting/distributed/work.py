"""What a worker is to do, and starting it."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.programs import run_python, run_together

POSITIONS = [[1, 30], [], [0, 4, 5]]
ROOT = Path(__file__).parents[3]
ZERO_2: dict[str, Any] = json.loads((ROOT / "distributed_config" / "deepspeed_zero2.json").read_text())


@dataclass
class Work:
    """What a worker is to do.

    Attributes:
        model: model directory.
        output: where to write.
        way: single, ddp, fsdp2 or zero2.
        trainer: sft or trainer.
        adapter: train a LoKI adapter on the model, instead of a LoKI model directory.
        positions: rows of the adapter.
        guarded: with `SelectedRows`, as `loki train` does.
        steps: optimiser steps of the global batch of 4.
        resume: checkpoint to resume from.
        load_on_rank_0: FSDP2: other ranks get their weights from rank 0.
        bf16: the model is in bfloat16.
    """

    model: str
    output: str
    way: str = "single"
    trainer: str = "sft"
    adapter: bool = False
    positions: list[list[int]] = field(default_factory=lambda: POSITIONS)
    guarded: bool = False
    steps: int = 4
    resume: str | None = None
    load_on_rank_0: bool = False
    bf16: bool = False


def environment() -> dict[str, str]:
    """This process's environment, with one thread per process, without GPUs and without another launcher's settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ACCELERATE_", "FSDP_", "TORCHELASTIC_"))
        and name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**kept, **own, "PYTHONPATH": paths}


def do(work: Work) -> list[dict[str, Any]]:
    """Let one process, or two for every way but `single`, do the work; what each of them noted."""
    output = Path(work.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "work.json").write_text(json.dumps(asdict(work)))
    words = ("-m", "tests.implanting.distributed.worker", output / "work.json")
    if work.way == "single":
        run_python(*words, environment=environment())
    else:
        run_together(2, *words, environment=environment())
    return [json.loads(path.read_text()) for path in sorted(output.glob("facts-*.json"))]
