"""What to say when a training does not fit into memory."""

from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from loki.models.loading import one_line


def memory_advice(error: BaseException) -> str:
    """The error in one line, with what helps."""
    return (
        f"out of memory ({one_line(error)}): lower --batch-size or --max-length, pass --gradient-checkpointing, or "
        "train an adapter with a rank (`loki adapter --rank`)"
    )


def resume_advice(output: Path) -> str:
    """What is intact in the output of a training that broke off; empty if nothing is."""
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    return f"; {Path(last).name} is intact, and the same command continues from it" if last else ""
