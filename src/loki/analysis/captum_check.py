"""Checking some randomly drawn samples against Captum."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from loki.calibration.samples import Sample
from loki.errors import CheckFailed
from loki.kva.attributor import Attributor

CHECK_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.1}
"""Largest accepted relative error of a sample's whole `[L, D]` scores against Captum, by the type computed in."""


def random_choice(candidates: Sequence[int], count: int, seed: int) -> list[int]:
    """`count` of the candidates (all, if there are fewer), the same ones for the same seed."""
    size = min(count, len(candidates))
    return [int(index) for index in np.random.default_rng(seed).choice(candidates, size=size, replace=False)]


def check_sample(reference: Attributor, sample: Sample, target: int, scores: NDArray[np.float32], dtype: str) -> None:
    """Compare the scores of a sample with Captum's.

    Args:
        reference: Captum.
        sample: what was attributed.
        target: the attributed token.
        scores: `[L, D]`.
        dtype: type that they were computed in.

    Raises:
        CheckFailed: if they differ by more than `CHECK_TOLERANCE`.
    """
    (expected,) = reference.attribute([sample.input_ids], [target])
    error = float((torch.from_numpy(scores) - expected.scores).norm())
    gap = error / max(float(expected.scores.norm()), 1e-300) if error else 0.0
    if not gap <= CHECK_TOLERANCE[dtype]:  # NaN is a failure too
        raise CheckFailed(
            f"sample {sample.id}: the scores differ from Captum's by {gap:.2g} (relative; at most "
            f"{CHECK_TOLERANCE[dtype]:g} is accepted): use --engine captum --overwrite, and report this model"
        )
