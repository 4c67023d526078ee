"""Counting how often every row is among a sample's lowest scores: all that a selection needs, in O(L * D) memory."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from loki.artefacts.positions import Positions, check_positions_fit
from loki.artefacts.scores import check_finite
from loki.errors import LokiError
from loki.selection.exact_sum import LIMBS, ExactSum


class RowCounter(ABC):
    """Counts, sample by sample, how often each row is among the first `k` of its group.

    A group is a set of rows ranked together: one layer, or the whole model. The rule is the same for both:

    1. per sample and group, the `k` lowest scores are marked; equal scores: the lower index first;
    2. the `k` rows of a group marked most often are selected; equal counts: the lower mean score first, then the lower
       index.

    Counts and score sums are integers (see `ExactSum`), so the result does not depend on the order of the samples, on
    the chunks they come in, or on how they were split over processes before `merge`.

    Attributes:
        samples: number of samples counted.
    """

    def __init__(self, layers: int, hidden: int, groups: int, k: int, exclude: Positions | None) -> None:
        self.layers = layers
        self.hidden = hidden
        self.k = k
        self.samples = 0
        self._groups = groups
        members = layers * hidden // groups
        self._excluded = _mask(exclude, layers, hidden).reshape(groups, members)
        check_rows_left(k, members - int(self._excluded.sum(axis=1).max()))
        self._counts: NDArray[np.int64] = np.zeros((groups, members), dtype=np.int64)
        self._sums = ExactSum((groups, members))

    def update(self, scores: NDArray[np.float32], ids: Sequence[str] | None = None) -> None:
        """Count some samples.

        Args:
            scores: `[n, L, D]`, float32 or float16.
            ids: the samples' names in error messages; by default their number, counted from 0.

        Raises:
            LokiError: if the shape is not `[n, L, D]`, or a score is NaN or infinite; nothing is counted then.
        """
        if scores.ndim != 3 or scores.shape[1:] != (self.layers, self.hidden):
            raise LokiError(
                f"scores have shape {list(scores.shape)}: expected [samples, {self.layers} layers, {self.hidden} rows]"
            )
        numbers = range(self.samples, self.samples + len(scores))
        check_finite(scores, ids if ids is not None else list(map(str, numbers)), origin="scores")
        grouped = self._ranked(scores).reshape(len(scores), *self._counts.shape)
        if len(scores):
            candidates = np.where(self._excluded, np.inf, grouped) if self._excluded.any() else grouped
            self._counts += _among_lowest(candidates, self.k).sum(axis=0)
            self._sums.add(grouped)
        self.samples += len(scores)

    def positions(self) -> Positions:
        """The selected rows of every layer, sorted.

        Raises:
            LokiError: if no sample has been counted.
        """
        if not self.samples:
            raise LokiError("no sample has been counted: there is nothing to select from")
        # The last key is the most significant one; lexsort is stable, so equal rows stay in order of index.
        order = np.lexsort((*self._sums.sort_keys(), -self._counts, self._excluded), axis=-1)
        chosen = np.zeros_like(self._excluded)
        np.put_along_axis(chosen, order[:, : self.k], True, axis=-1)
        return [np.flatnonzero(rows).tolist() for rows in chosen.reshape(self.layers, self.hidden)]

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
            "counts": self._counts.reshape(self.layers, self.hidden).copy(),
            "sums": self._sums.limbs.reshape(LIMBS, self.layers, self.hidden).copy(),
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
        self._counts = np.array(state["counts"], dtype=np.int64).reshape(self._counts.shape)
        self._sums.limbs = np.array(state["sums"], dtype=np.int64).reshape(self._sums.limbs.shape)
        self.samples = int(state["samples"])

    @abstractmethod
    def _ranked(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores, in the sense in which the lowest come first."""

    def _identity(self) -> dict[str, Any]:
        return {
            "rule": type(self).__name__,
            "layers": self.layers,
            "hidden": self.hidden,
            "k": self.k,
            "excluded": int(self._excluded.sum()),
        }


class LayerBalancedCounter(RowCounter):
    """Selects the same number of rows in every layer: those most often among the layer's lowest scores.

    The paper's layer-balanced strategy (arXiv 2505.22120, section 3.2).

    Args:
        layers: number of layers L.
        hidden: number of rows D per layer.
        k: rows to select per layer.
        exclude: rows that are left out as if they did not exist (default: none).

    Raises:
        LokiError: if a layer has fewer than `k` rows that are not excluded.
    """

    def __init__(self, layers: int, hidden: int, k: int, exclude: Positions | None = None) -> None:
        super().__init__(layers, hidden, groups=layers, k=k, exclude=exclude)

    def _ranked(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        return scores


class GlobalCounter(RowCounter):
    """Selects rows of the whole model, whatever their layer: those most often among a sample's lowest (or highest).

    All L * D rows are ranked together, in order of layer and row: per sample the `total` lowest are marked, and the
    `total` rows marked most often are selected. With `highest` everything is mirrored: the highest scores are marked,
    and among equal counts the higher mean comes first (and still the lower index).

    Args:
        layers: number of layers L.
        hidden: number of rows D per layer.
        total: rows to select in the whole model.
        highest: select the highest scores instead of the lowest.
        exclude: rows that are left out as if they did not exist (default: none).

    Raises:
        LokiError: if the model has fewer than `total` rows that are not excluded.
    """

    def __init__(
        self, layers: int, hidden: int, total: int, highest: bool = False, exclude: Positions | None = None
    ) -> None:
        super().__init__(layers, hidden, groups=1, k=total, exclude=exclude)
        self.highest = highest

    def _ranked(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        return -scores if self.highest else scores

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "highest": self.highest}


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


def check_rows_left(k: int, left: int) -> None:
    """Check that `k` of the `left` rows that are not excluded can be selected.

    Raises:
        LokiError: if not 1 <= k <= left.
    """
    if not 1 <= k <= left:
        raise LokiError(
            f"cannot select {k} rows of {left} that are not excluded: choose another quota, or exclude less"
        )


def _mask(exclude: Positions | None, layers: int, hidden: int) -> NDArray[np.bool_]:
    mask = np.zeros((layers, hidden), dtype=bool)
    if exclude is not None:
        check_positions_fit(exclude, layers=layers, hidden=hidden, origin="positions to exclude")
        for layer, rows in enumerate(exclude):
            mask[layer, rows] = True
    return mask
