"""When to stop early: the selection no longer changes as samples are added."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from loki.analysis.batches import Batch
from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.files import write_json
from loki.inputs import Strict, checked, read_json
from loki.selection.overlap import overlap

_FIRST_CHECKPOINT = 64  # samples
_GROWTH = 1.25  # each checkpoint has a quarter more samples than the one before
_IN_A_ROW = 2  # "stays above" the threshold


class _State(Strict):
    overlaps: list[Annotated[FiniteFloat, Field(ge=0, le=1)]]
    positions: dict[str, Positions]


class StabilityRule:
    """Stops when selections at successive checkpoints overlap enough, for every quota, twice in a row.

    The paper reports an overlap of 97.57% between a reduced set of questions and the whole of MMLU
    (arXiv 2505.22120).

    Args:
        threshold: smallest overlap that counts as unchanged, above 0 and at most 1.

    Raises:
        LokiError: if the threshold is out of range.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise LokiError(f"--until-stable {threshold} is out of range: give an overlap above 0 and at most 1")
        self._threshold = threshold
        self._overlaps: list[float] = []
        self._positions: dict[str, Positions] = {}

    def resume(self, path: Path) -> None:
        """Remember in the file `path` what is observed, so that an interrupted run stops where it would have."""
        self._path = path
        if path.exists():
            advice = f"it is damaged: remove {path.parent}, and run the same command again"
            found = read_json(path, what="record of the stopping rule")
            state = checked(_State, found, f"record of the stopping rule {path}", advice=advice)
            self._overlaps, self._positions = state.overlaps, state.positions

    def record(self, quotas: Sequence[float]) -> dict[str, Any]:
        """What a scores file says of the rule: `until_stable`, `quotas`, and the `overlaps` observed."""
        return {"until_stable": self._threshold, "quotas": [*map(float, quotas)], "overlaps": [*self._overlaps]}

    @property
    def observed(self) -> int:
        """Number of checkpoints observed so far."""
        return len(self._overlaps)

    @property
    def stable(self) -> bool:
        """Whether the selection has stayed the same long enough."""
        last = self._overlaps[-_IN_A_ROW:]
        return len(self._overlaps) > _IN_A_ROW and min(last) >= self._threshold

    def observe(self, positions: Mapping[float, Positions]) -> bool:
        """Take note of the selections at the next checkpoint, by quota, and say whether to stop."""
        current = {repr(quota): rows for quota, rows in positions.items()}
        before = self._positions
        self._overlaps.append(min((overlap(before[quota], current[quota]) for quota in before), default=0.0))
        self._positions = current
        write_json(self._path, {"overlaps": self._overlaps, "positions": current}, overwrite=True, indent=None)
        return self.stable


def checkpoints(batches: Sequence[Batch], order: Sequence[int]) -> list[int]:
    """After how many batches of `order` to look: at 64 samples, whenever a quarter has been added, and at the end."""
    ends = []
    wanted = float(_FIRST_CHECKPOINT)
    for end, samples in enumerate(accumulate(len(batches[number]) for number in order), start=1):
        if samples >= wanted or end == len(order):
            ends.append(end)
            wanted = samples * _GROWTH
    return ends
