"""Counting how often every row is among a sample's lowest scores: all that a selection needs, in O(L * D) memory."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.selection.exact_sum import ExactSum
from loki.selection.ranking import check_rows_left, excluded_rows, first_rows, grouped
from loki.selection.strategy import By, Counting, Scope


class RowCounter:
    """Counts, sample by sample, how often each row is among the first `rows` of its group.

    A group is a set of rows ranked together: one layer (arXiv 2505.22120, section 3.2), or the whole model, in order of
    layer and row. The rule is the same for both:

    1. per sample and group, the `rows` lowest scores are marked; equal scores: the lower index first;
    2. the `rows` rows of a group marked most often are selected; equal counts: the lower mean score first, then the
       lower index.

    With `By.ABSOLUTE` scores lose their sign first. With `Counting.highest` everything is mirrored: the highest scores
    are marked, and among equal counts the higher mean comes first (and still the lower index). Without
    `Counting.votes` nothing is marked, and the mean alone decides.

    Counts and score sums are integers (see `ExactSum`), so the result does not depend on the order of the samples, on
    the chunks they come in, or on how they were split over processes before `merge`.

    Args:
        layers: number of layers L.
        hidden: number of rows D per layer.
        rows: how many rows to select, of every layer or of the whole model.
        scope: which of the two.
        counting: how rows are ordered (default: by votes, the lowest scores first).
        by: whether scores keep their sign.
        exclude: rows that are left out as if they did not exist (default: none).

    Attributes:
        samples: number of samples counted.

    Raises:
        LokiError: if a group has fewer than `rows` rows that are not excluded.
    """

    def __init__(
        self,
        layers: int,
        hidden: int,
        rows: int,
        scope: Scope = Scope.LAYER,
        counting: Counting | None = None,
        by: By = By.SIGNED,
        *,
        exclude: Positions | None = None,
    ) -> None:
        self.layers = layers
        self.hidden = hidden
        self.rows = rows
        self.scope = scope
        self.counting = counting or Counting()
        self.by = by
        self.samples = 0
        self._excluded = excluded_rows(exclude, layers, hidden)
        check_rows_left(rows, self._excluded, scope)
        self._counts: NDArray[np.int64] = np.zeros((layers, hidden), dtype=np.int64)
        self._sums = ExactSum((layers, hidden))

    def update(self, scores: NDArray[np.float32]) -> None:
        """Count some samples.

        Args:
            scores: finite, `[n, L, D]`, float32 or float16; whoever computes or reads scores has checked them.

        Raises:
            LokiError: if the shape is not `[n, L, D]`; nothing is counted then.
            ValueError: if a score is NaN or infinite; nothing is counted then.
        """
        if scores.ndim != 3 or scores.shape[1:] != (self.layers, self.hidden):
            raise LokiError(
                f"scores have shape {list(scores.shape)}: expected [samples, {self.layers} layers, {self.hidden} rows]"
            )
        if len(scores):
            ranked = np.abs(scores) if self.by is By.ABSOLUTE else scores
            ranked = -ranked if self.counting.highest else ranked
            self._sums.add(ranked)
            if self.counting.votes:
                candidates = np.where(self._excluded, np.inf, ranked) if self._excluded.any() else ranked
                marked = _among_lowest(grouped(candidates, self.scope), self.rows)
                self._counts += marked.sum(axis=0).reshape(self.layers, self.hidden)
        self.samples += len(scores)

    def positions(self) -> Positions:
        """The selected rows of every layer, sorted.

        Raises:
            LokiError: if no sample has been counted.
        """
        if not self.samples:
            raise LokiError("no sample has been counted: there is nothing to select from")
        return first_rows([*self._sums.sort_keys(), -self._counts], self.rows, self._excluded, self.scope)

    def merge(self, other: Self) -> None:
        """Add what `other` counted over other samples.

        Raises:
            LokiError: if `other` counts something else.
        """
        if other._identity() != self._identity() or not np.array_equal(other._excluded, self._excluded):
            raise LokiError(f"cannot merge counts of {other._identity()} into counts of {self._identity()}")
        self._counts += other._counts
        self._sums.limbs += other._sums.limbs
        self.samples += other.samples

    def state(self) -> dict[str, NDArray[np.int64]]:
        """What has been counted, as arrays to be saved: `counts` `[L, D]`, `sums` `[limbs, L, D]`, `samples` `[]`."""
        return {
            "counts": self._counts.copy(),
            "sums": self._sums.limbs.copy(),
            "samples": np.array(self.samples, dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[np.int64]]) -> None:
        """Continue from what `state()` of an equal counter returned.

        Raises:
            LokiError: if the arrays are missing or of another shape.
        """
        expected = {name: array.shape for name, array in self.state().items()}
        found = {name: np.shape(state[name]) for name in expected if name in state}
        if found != expected:
            raise LokiError(f"saved counts have the shapes {found}, but {expected} was expected: start again")
        self._counts = np.array(state["counts"], dtype=np.int64)
        self._sums.limbs = np.array(state["sums"], dtype=np.int64)
        self.samples = int(state["samples"])

    def _identity(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            "rows": self.rows,
            "scope": str(self.scope),
            **asdict(self.counting),
            "by": str(self.by),
            "excluded": int(self._excluded.sum()),
        }


def _among_lowest(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Mark the `k` lowest of the last axis; among equal scores the lower index comes first."""
    threshold = np.partition(scores, k - 1, axis=-1)[..., k - 1 : k]
    marked = scores <= threshold
    crowded = marked.sum(axis=-1) > k  # more rows share the k-th score than there are places left
    if crowded.any():
        below = scores[crowded] < threshold[crowded]
        tied = marked[crowded] & ~below
        places = k - below.sum(axis=-1, keepdims=True)
        marked[crowded] = below | (tied & (tied.cumsum(axis=-1) <= places))
    return marked
