"""Verifying that nothing but the selected rows of a model differs from its base."""

from dataclasses import dataclass

import torch

from loki.artefacts.positions import Positions
from loki.errors import CheckFailed
from loki.models.directories import selected_by_tensor
from loki.models.model_directory import AnyModel, ModelDirectory


@dataclass(frozen=True)
class Difference:
    """One tensor that differs where it should not.

    Attributes:
        tensor: its name.
        reason: what differs, in words.
    """

    tensor: str
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor}: {self.reason}"


@dataclass(frozen=True)
class VerifyReport:
    """What comparing two models showed.

    Attributes:
        tensors: number of tensors compared.
        changed_rows: number of selected rows that differ.
        selected_rows: number of selected rows.
        differences: tensors that differ elsewhere; empty if the check holds.
    """

    tensors: int
    changed_rows: int
    selected_rows: int
    differences: list[Difference]

    def raise_for_differences(self, shown: int = 5) -> None:
        """Raise unless nothing but selected rows differs.

        Raises:
            CheckFailed: with the first `shown` differences.
        """
        if self.differences:
            listed = "; ".join(map(str, self.differences[:shown]))
            more = len(self.differences) - shown
            raise CheckFailed(
                f"{len(self.differences)} tensors differ outside the selected rows: {listed}"
                + (f"; and {more} more" if more > 0 else "")
            )


def verify(base: AnyModel, tuned: AnyModel, positions: Positions) -> VerifyReport:
    """Compare every tensor of two models, one tensor of each in memory at a time.

    Only the listed rows of each layer's `down_proj.weight`, and their entries of its bias, may differ.

    Args:
        base: the model before, a local directory or hub id.
        tuned: the model after: restored, or a LoKI model directory.
        positions: the rows that may differ, per layer.

    Raises:
        LokiError: if a model cannot be read, or the positions do not fit it.
    """
    base, tuned = ModelDirectory.of(base), ModelDirectory.of(tuned)
    config = base.config
    allowed = selected_by_tensor(base.projections_for(positions), positions)
    tuned.check()
    before, after = base.checkpoint, tuned.checkpoint
    # A tied output embedding need not be stored.
    optional = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    differences: list[Difference] = []
    changed_rows = 0
    everything = sorted({*before.names(), *after.names()})
    for name in everything:
        if name not in before or name not in after:
            if name not in optional:
                where = "the tuned model" if name in before else "the base model"
                differences.append(Difference(name, f"missing in {where}"))
            continue
        changed, reason = _compare(before.tensor(name), after.tensor(name), allowed.get(name, []))
        if name.endswith(".weight"):
            changed_rows += changed
        if reason:
            differences.append(Difference(name, reason))
    return VerifyReport(len(everything), changed_rows, sum(map(len, positions)), differences)


def _compare(before: torch.Tensor, after: torch.Tensor, allowed: list[int]) -> tuple[int, str]:
    """Number of allowed rows that differ, and in words what else does."""
    if before.shape != after.shape:
        return 0, f"shape {list(before.shape)} became {list(after.shape)}"
    if before.dtype != after.dtype:
        return 0, f"type {before.dtype} became {after.dtype}"
    different = before != after
    # NaN is unequal to itself: compare bits where both are NaN.
    if before.is_floating_point():
        different &= ~(before.isnan() & after.isnan())
    rows = different.reshape(len(different), -1).any(dim=1) if different.dim() else different.reshape(1)
    changed = int(rows[allowed].sum()) if allowed else 0
    rows[allowed] = False
    if not rows.any():
        return changed, ""
    offending = rows.nonzero().flatten().tolist()
    largest = (after.double() - before.double()).abs().reshape(len(rows), -1)[offending].max()
    listed = ", ".join(map(str, offending[:5])) + (", ..." if len(offending) > 5 else "")
    return changed, f"{len(offending)} of {len(rows)} rows differ ({listed}) by up to {float(largest):.3g}"
