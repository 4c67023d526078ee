"""Taking rows in order: what is ranked together, what is left out, and which come first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loki.artefacts.positions import Positions, check_positions_fit
from loki.errors import LokiError
from loki.selection.strategy import Scope


def excluded_rows(exclude: Positions | None, layers: int, hidden: int) -> NDArray[np.bool_]:
    """Bool `[L, D]`, true for the rows to exclude; None excludes nothing.

    Raises:
        LokiError: if the positions are of a model of another shape.
    """
    mask = np.zeros((layers, hidden), dtype=bool)
    if exclude is not None:
        check_positions_fit(exclude, layers=layers, hidden=hidden, origin="positions to exclude")
        for layer, rows in enumerate(exclude):
            mask[layer, rows] = True
    return mask


def grouped(values: NDArray[Any], scope: Scope) -> NDArray[Any]:
    """`[..., L, D]` as `[..., groups, members]`: the rows that are ranked together lie along the last axis."""
    *before, layers, hidden = values.shape
    return values.reshape(*before, layers, hidden) if scope is Scope.LAYER else values.reshape(*before, 1, -1)


def check_rows_left(rows: int, excluded: NDArray[np.bool_], scope: Scope) -> None:
    """Check that so many rows of every group can be selected.

    Raises:
        LokiError: if a group has fewer rows that are not excluded.
    """
    left = int((~grouped(excluded, scope)).sum(axis=-1).min())
    if not 1 <= rows <= left:
        raise LokiError(
            f"cannot select {rows} rows of {left} that are not excluded: choose another quota, or exclude less"
        )


def first_rows(keys: Sequence[NDArray[Any]], rows: int, excluded: NDArray[np.bool_], scope: Scope) -> Positions:
    """The first `rows` rows of every group, sorted within each layer.

    Args:
        keys: arrays `[L, D]`; rows are ordered by the last one, lowest first, equal ones by the one before, and in the
            end by their index.
        rows: how many, see `check_rows_left`.
        excluded: bool `[L, D]`, the rows that must not be selected.
        scope: what a group is.
    """
    # The last key is the most significant one; lexsort is stable, so equal rows stay in order of index.
    order = np.lexsort([grouped(key, scope) for key in (*keys, excluded)], axis=-1)
    chosen = np.zeros_like(grouped(excluded, scope))
    np.put_along_axis(chosen, order[:, :rows], True, axis=-1)
    return [np.flatnonzero(layer).tolist() for layer in chosen.reshape(excluded.shape)]
