"""Merging adapters over disjoint rows into one: what each adds to its rows is kept exactly, in any order."""

from dataclasses import replace
from functools import reduce
from itertools import chain, combinations
from pathlib import Path

import torch

from loki.errors import LokiError
from loki.files import protect_inputs
from loki.implanting.experts import by_expert
from loki.implanting.peft.adapter_files import KEY_PREFIX, LayerDelta, SavedAdapter, read_adapter, write_adapter
from loki.implanting.peft.base_weight import sum_fingerprints
from loki.implanting.peft.config import LoKIConfig
from loki.models.model_directory import models_read


def merge_adapters(adapters: list[Path], output: Path, *, overwrite: bool = False) -> LoKIConfig:
    """Write one adapter that does what all of `adapters` do together.

    Full rows are put side by side. If every adapter has a rank, the result has the sum of the ranks; otherwise it
    holds full rows. Positions and weights do not depend on the order of `adapters`; the name of the base model is
    the first one's. Loading the result on a base checks the selected rows of all of them.

    Args:
        adapters: directories of at least two LoKI adapters, trained on one base model, or one after the other on a
            base into which the earlier ones had been merged.
        output: directory to write.
        overwrite: replace a directory that exists.

    Returns:
        Configuration of the merged adapter.

    Raises:
        LokiError: if two adapters share a row, are for models of different shape, or `output` exists.
    """
    if len(adapters) < 2:
        raise LokiError("merge-adapters needs at least two adapters")
    protect_inputs(output, *models_read(*adapters))
    given = [read_adapter(path) for path in adapters]
    for first, second in combinations(given, 2):
        _check_pair(first, second)
    # Sorted, so that the result is the same in any order.
    parts = sorted(given, key=lambda part: part.config.row_lists)
    ranks = [part.config.rank for part in parts if part.config.rank is not None]
    rank = sum(ranks) if len(ranks) == len(parts) else None
    tensors: dict[str, torch.Tensor] = {}
    for layers in zip(*(part.layers for part in parts), strict=True):
        for module in sorted({delta.module for layer in layers for delta in layer}):
            found = [next((delta for delta in layer if delta.module == module), None) for layer in layers]
            present = [delta for delta in found if delta is not None]
            merged = _stack_rows(present) if rank is None else _stack_ranks(found, ranks)
            tensors |= {f"{KEY_PREFIX}{module}.{kind}.weight": tensor for kind, tensor in merged.items()}
    lists = zip(*(part.config.row_lists for part in parts), strict=True)
    config = replace(
        given[0].config.with_full_rows([sorted(chain.from_iterable(rows)) for rows in lists]),
        rank=rank,
        base_fingerprint=sum_fingerprints([part.config.base_fingerprint for part in parts]),
        base_values=sum_fingerprints([part.config.base_values for part in parts], exact=True),
        base_parts=_common_parts([part.config.base_parts or {} for part in parts]),
    )
    write_adapter(output, config, config, tensors, overwrite=overwrite)
    return config


def _common_parts(given: list[dict[str, str]]) -> dict[str, str] | None:
    """What all adapters say alike of their base."""
    return {part: value for part, value in given[0].items() if all(one.get(part) == value for one in given)} or None


def _check_pair(first: SavedAdapter, second: SavedAdapter) -> None:
    shapes = [(len(adapter.layers), adapter.config.rows_per_layer) for adapter in (first, second)]
    if shapes[0] != shapes[1]:
        raise LokiError(
            f"{first.path} is for {shapes[0][0]} layers of {shapes[0][1]} rows, {second.path} for {shapes[1][0]} "
            f"layers of {shapes[1][1]}: merge adapters of one base model"
        )
    if first.config.experts != second.config.experts:
        raise LokiError(
            f"{first.path} is made with --experts {first.config.experts}, {second.path} with --experts "
            f"{second.config.experts}: merge adapters of the same choice"
        )
    for index, (one, other) in enumerate(zip(first.layers, second.layers, strict=True)):
        if one and other and _described(one) != _described(other):
            raise LokiError(
                f"{first.path} adapts {_described(one)}, {second.path} {_described(other)}: merge adapters of one base "
                "model"
            )
        shared = set(first.config.row_lists[index]) & set(second.config.row_lists[index])
        if shared:
            raise LokiError(
                f"{first.path} and {second.path} both change row {min(shared)} of layer {index} ({len(shared)} shared "
                "there): select disjoint rows with loki select --exclude, or add them up with add_weighted_adapter"
            )


def _described(deltas: list[LayerDelta]) -> str:
    return " and ".join(f"{delta.module} with {delta.experts} * {delta.width} columns" for delta in deltas)


def _stack_rows(deltas: list[LayerDelta]) -> dict[str, torch.Tensor]:
    matrices = [delta.matrix for delta in deltas]
    stacked = torch.cat(
        [by_expert(matrix, delta.experts) for delta, matrix in zip(deltas, matrices, strict=True)], dim=1
    )
    return {"loki_delta": stacked.to(_common_dtype(matrices))[:, _row_order(deltas)].flatten(0, 1)}


def _stack_ranks(deltas: list[LayerDelta | None], ranks: list[int]) -> dict[str, torch.Tensor]:
    """`loki_A` one below the other, `loki_B` in blocks; zeros for an adapter that has no rows in this layer."""
    present = [delta for delta in deltas if delta is not None]
    dtype = _common_dtype([tensor for delta in present for tensor in delta.tensors.values()])
    experts = present[0].experts
    down = torch.zeros(experts, sum(ranks), present[0].width, dtype=dtype)
    up = torch.zeros(experts, sum(len(delta.rows) for delta in present), sum(ranks), dtype=dtype)
    row = column = 0
    for delta, rank in zip(deltas, ranks, strict=True):
        if delta is not None:
            down[:, column : column + rank] = by_expert(delta.tensors["loki_A"], delta.experts)
            up[:, row : row + len(delta.rows), column : column + rank] = by_expert(
                delta.tensors["loki_B"], delta.experts
            )
            row += len(delta.rows)
        column += rank
    return {"loki_A": down.flatten(0, 1), "loki_B": up[:, _row_order(present)].flatten(0, 1)}


def _row_order(deltas: list[LayerDelta]) -> torch.Tensor:
    return torch.tensor([row for delta in deltas for row in delta.rows]).argsort()


def _common_dtype(tensors: list[torch.Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
