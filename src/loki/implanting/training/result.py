"""What a training did."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Attributes:
        output: directory of the trained LoKI model.
        steps: optimiser steps.
        loss: mean training loss of this run.
        trainable_parameters: number of trained values.
        changed_rows: number of selected rows that changed.
        seconds: wall-clock time of this run.
    """

    output: Path
    steps: int
    loss: float
    trainable_parameters: int
    changed_rows: int
    seconds: float
