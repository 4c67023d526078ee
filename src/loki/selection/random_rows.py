"""Rows drawn by chance, the control for every other strategy."""

import numpy as np

from loki.artefacts.positions import Positions
from loki.selection.ranking import check_rows_left, excluded_rows
from loki.selection.strategy import Request


def by_chance(request: Request) -> Positions:
    """As many rows of every layer as the request says, drawn evenly and without replacement.

    Raises:
        LokiError: if too few rows are left after excluding, or what to exclude does not fit the model.
    """
    excluded = excluded_rows(request.exclude, request.layers, request.hidden)
    check_rows_left(request.rows, excluded, request.scope)
    generator = np.random.default_rng(request.seed)
    return [
        np.sort(generator.choice(np.flatnonzero(~rows), size=request.rows, replace=False)).tolist() for rows in excluded
    ]
