"""What a benchmark ran on."""

import os
import platform
from pathlib import Path

import torch


def hardware() -> dict[str, str | int | None]:
    """Processor, number of cores, GPU if there is one, and PyTorch's version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
