"""Ways of fine-tuning that are compared: each makes a base model trainable."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from peers import PEERS, with_peer
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from loki.artefacts.moments import Moments
from loki.artefacts.positions import Positions, read_positions
from loki.implanting.directions import Directions, free_directions, least_used_directions
from loki.implanting.protected import protect_rows
from loki.implanting.splitting import loki_linears, split_rows
from loki.models.experts import down_projections
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
        soft: trains along all of them, the more used ones less, see `_softened`; None trains along the others only.
        calibration: token ids `[N, T]` of general text, for `corda`.
    """

    quota: float
    seed: int
    positions: Path | None
    moments: Path | None
    protect: float | None
    soft: float | None = None
    calibration: torch.Tensor | None = None


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
        directions, used = _directions(choice.moments, occupied, projections[0].in_features)
        if choice.soft is None:
            trained = {
                layer: vectors[..., : free_directions(vectors.shape[-1], choice.protect)].contiguous()
                for layer, vectors in directions.items()
            }
        else:
            trained = {
                layer: _softened(vectors, used[layer], choice.protect, choice.soft)
                for layer, vectors in directions.items()
            }
        protect_rows(model, trained)
    return model


def _softened(vectors: torch.Tensor, used: torch.Tensor, protect: float, power: float) -> torch.Tensor:
    """Directions that are shorter the more they are used, so that a step of AdamW goes less far along them.

    Each is multiplied by `(1 + used / limit) ** -power` with the limit at the `protect` quantile: a power of 0.5
    whitens the inputs in the used directions; the greater it is, the nearer it comes to leaving them alone.

    Args:
        vectors: orthonormal directions `[blocks, n, n]`, least used first.
        used: mean squares of the inputs along them `[blocks, n]`.
        protect: share of the directions that would be left alone.
        power: see above.
    """
    limit = used[..., free_directions(used.shape[-1], protect), None]
    return (vectors * (1 + used / limit).pow(-power)[..., None, :]).contiguous()


@lru_cache(maxsize=4)
def _directions(moments: Path, occupied: tuple[bool, ...], width: int) -> tuple[Directions, dict[int, torch.Tensor]]:
    """All directions of the layers that have rows, least used first: an eigenproblem per layer, solved once.

    Also how much each is used: the mean square of the inputs along it.
    """
    none_protected, rows = 1e-9, [[0] if taken else [] for taken in occupied]
    directions = least_used_directions(moments, none_protected, rows, widths=[width] * len(rows))
    measured = Moments(moments)
    used = {
        layer: torch.einsum("bni,bnm,bmi->bi", vectors, measured.second_moment(layer), vectors).clamp_min(0)
        for layer, vectors in directions.items()
    }
    return directions, used


def train_everything(model: PreTrainedModel, choice: Choice) -> nn.Module:
    """Full fine-tuning."""
    del choice
    return model.requires_grad_(True)


def ordinary(model: nn.Module) -> PreTrainedModel:
    """The model as it computes now, ready to be made trainable again: rows put in place, adapters merged."""
    if isinstance(model, PeftModel):
        return model.merge_and_unload()  # type: ignore[no-any-return]
    for name, layer in loki_linears(model).items():
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(layer.merged_weight(), requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.merged_bias(), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)
    return model  # type: ignore[return-value]


def _peer(name: str) -> Callable[[PreTrainedModel, Choice], nn.Module]:
    return lambda model, choice: with_peer(model, name, choice.seed, choice.calibration)


METHODS: dict[str, Callable[[PreTrainedModel, Choice], nn.Module]] = {
    "rows": train_rows,
    "full": train_everything,
    **{name: _peer(name) for name in PEERS},
}
