"""Ways of fine-tuning that are compared: each makes a base model trainable."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from peers import PEERS, with_peer
from torch import nn
from transformers import PreTrainedModel

from loki.artefacts.positions import Positions, read_positions
from loki.implanting.directions import Directions, least_used_directions
from loki.implanting.protected import protect_rows
from loki.implanting.splitting import split_rows
from loki.models.architectures import down_projections
from loki.selection.quota import rows_for_quota


@dataclass(frozen=True)
class Choice:
    """What belongs to a cell's method.

    Attributes:
        quota: percentage of the rows.
        seed: of rows that are drawn.
        positions: file of rows that were selected elsewhere, for `rows`.
        moments: file of second moments, for `protect`.
        protect: share of the input directions that are left alone; None trains along all.
    """

    quota: float
    seed: int
    positions: Path | None
    moments: Path | None
    protect: float | None


def random_positions(layers: int, hidden: int, quota: float, seed: int) -> Positions:
    """As many rows of every layer as the quota says, drawn evenly."""
    generator, rows = np.random.default_rng(seed), rows_for_quota(quota, hidden)
    return [np.sort(generator.choice(hidden, size=rows, replace=False)).tolist() for _ in range(layers)]


def train_rows(model: PreTrainedModel, choice: Choice) -> nn.Module:
    """Rows of `down_proj`: those of a file, or drawn; along all input directions or the least used ones."""
    projections = list(down_projections(model).values())
    if choice.positions is None:
        positions = random_positions(len(projections), projections[0].out_features, choice.quota, choice.seed)
    else:
        positions = read_positions(choice.positions)
    split_rows(model, positions)
    if choice.protect is not None:
        assert choice.moments is not None, "protect needs --moments"
        occupied = tuple(bool(rows) for rows in positions)
        protect_rows(model, _directions(choice.moments, choice.protect, occupied, projections[0].in_features))
    return model


@lru_cache(maxsize=2)
def _directions(moments: Path, protect: float, occupied: tuple[bool, ...], width: int) -> Directions:
    """The directions of the layers that have rows; the same in many cells, and dear: an eigenproblem per layer."""
    return least_used_directions(moments, protect, [[0] if taken else [] for taken in occupied], width=width)


def train_everything(model: PreTrainedModel, choice: Choice) -> nn.Module:
    """Full fine-tuning."""
    del choice
    return model.requires_grad_(True)


def _peer(name: str) -> Callable[[PreTrainedModel, Choice], nn.Module]:
    return lambda model, choice: with_peer(model, name, choice.seed)


METHODS: dict[str, Callable[[PreTrainedModel, Choice], nn.Module]] = {
    "rows": train_rows,
    "full": train_everything,
    **{name: _peer(name) for name in PEERS},
}
