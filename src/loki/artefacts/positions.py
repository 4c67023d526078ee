"""Positions: which rows of every layer's `down_proj.weight` are selected. A JSON list of lists, one per layer."""

from collections.abc import Collection, Sequence
from pathlib import Path

from loki.errors import LokiError
from loki.files import write_json
from loki.inputs import read_json, shown

Positions = list[list[int]]
_MOST_ROWS = 2**31


def read_positions(path: Path) -> Positions:
    """Read a positions file; the row indices of each layer come back sorted (published files are not).

    Raises:
        LokiError: if the file is missing, not JSON, or not a list of lists of distinct row indices.
    """
    return check_positions(read_json(path, what="positions file"), origin=f"positions file {path}")


def write_positions(path: Path, positions: Positions, *, overwrite: bool = False) -> None:
    """Write a positions file, sorted, atomically.

    Raises:
        LokiError: if `path` exists and `overwrite` is False, or the positions are malformed.
    """
    write_json(path, check_positions(positions), overwrite=overwrite, indent=None)


def default_positions_folder(model: str | Path) -> Path:
    """Where the published project puts a model's positions: `kva_result/pos_json/<model>`."""
    return Path("kva_result", "pos_json", Path(model).resolve().name)


def positions_file_name(quota: float) -> str:
    """What it calls them: `10.json`."""
    return f"{quota:.12g}.json"


def check_positions(
    value: object, *, layers: int | None = None, hidden: int | None = None, origin: str = "positions"
) -> Positions:
    """Check the nesting and return the positions sorted within each layer.

    Args:
        value: what should be positions.
        layers: number of layers of the model they are for; None where the model is not known yet.
        hidden: number of rows per layer, given together with `layers`.
        origin: what they are called in error messages.

    Raises:
        LokiError: if `value` is not a list of lists of distinct, non-negative integers with at least one index, or they
            do not fit the model.
    """
    if not isinstance(value, list) or not all(isinstance(rows, list) for rows in value):
        raise LokiError(f"{origin}: expected a list of lists, one list of row indices per layer")
    for layer, rows in enumerate(value):
        for row in rows:
            if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < _MOST_ROWS:
                raise LokiError(f"{origin}: layer {layer} holds {shown(row)}, which is not a row index")
        if len(set(rows)) != len(rows):
            twice = next(row for row in rows if rows.count(row) > 1)
            raise LokiError(f"{origin}: layer {layer} lists row {twice} more than once")
    if not any(value):
        raise LokiError(f"{origin}: no row is selected in any layer")
    positions = [sorted(rows) for rows in value]
    if layers is not None and hidden is not None:
        check_positions_fit(positions, layers=layers, hidden=hidden, origin=origin)
    return positions


def check_positions_fit(positions: Positions, *, layers: int, hidden: int, origin: str = "positions") -> None:
    """Check positions against a model of `layers` layers and `hidden` rows per `down_proj.weight`.

    Raises:
        LokiError: if the number of layers differs or a row is out of range.
    """
    if len(positions) != layers:
        raise LokiError(
            f"{origin}: made for {len(positions)} layers, but the model has {layers}: use positions selected for it"
        )
    for layer, rows in enumerate(positions):
        if rows and max(rows) >= hidden:
            raise LokiError(
                f"{origin}: layer {layer} lists row {max(rows)}, but the model has {hidden} rows per layer "
                f"(0 to {hidden - 1}): use positions selected for it"
            )


def check_layers_have_rows(positions: Positions, layers: Collection[int], *, origin: str = "positions") -> None:
    """Check that no row is selected in a layer without rows.

    Args:
        positions: selected rows of every layer.
        layers: the layers that have rows.
        origin: what the positions are called in error messages.

    Raises:
        LokiError: names the first layer that has none.
    """
    for layer, rows in enumerate(positions):
        if rows and layer not in layers:
            raise LokiError(
                f"{origin}: rows are selected in layer {layer}, which has none with this choice of --experts: select "
                "with the same choice"
            )


def merge_positions(parts: Sequence[Positions]) -> Positions:
    """The rows that any of `parts` holds, sorted within each layer.

    Raises:
        LokiError: if `parts` is empty or its members have different numbers of layers.
    """
    counts = sorted({len(positions) for positions in parts})
    if len(counts) != 1:
        raise LokiError(f"positions for {counts} layers cannot be joined: use positions for one model")
    return [sorted(set().union(*layer)) for layer in zip(*parts, strict=True)]
