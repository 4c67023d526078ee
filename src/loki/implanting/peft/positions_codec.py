"""Positions as a bitmask: 22 kB for an 8B model, where the JSON lists take up to 462 kB."""

import base64
import binascii
from typing import TypedDict

import numpy as np

from loki.artefacts.positions import Positions, check_positions
from loki.errors import LokiError


class PositionsMask(TypedDict):
    """What is stored in `adapter_config.json`.

    Attributes:
        layers: number of layers `L`.
        rows: number of rows `D` per layer.
        bitmask: base64 of `L * D` bits, layer after layer, the first row in the highest bit; set where selected.
    """

    layers: int
    rows: int
    bitmask: str


def encode_positions(positions: Positions, rows: int) -> PositionsMask:
    """Pack positions into a bitmask over `rows` rows per layer.

    Raises:
        LokiError: if a row is not below `rows`.
    """
    selected = np.zeros((len(positions), rows), dtype=bool)
    for layer, indices in enumerate(positions):
        if indices and max(indices) >= rows:
            raise LokiError(f"positions: layer {layer} lists row {max(indices)} of only {rows} rows")
        selected[layer, indices] = True
    packed = base64.b64encode(np.packbits(selected).tobytes()).decode("ascii")
    return PositionsMask(layers=len(positions), rows=rows, bitmask=packed)


def decode_positions(mask: PositionsMask) -> Positions:
    """Unpack a bitmask; the inverse of `encode_positions`.

    Raises:
        LokiError: if a field is missing, or the bitmask does not hold `layers * rows` bits.
    """
    try:
        layers, rows = int(mask["layers"]), int(mask["rows"])
        packed = np.frombuffer(base64.b64decode(mask["bitmask"], validate=True), dtype=np.uint8)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise LokiError("positions of the adapter are damaged: save or fetch the adapter again") from error
    if layers < 1 or rows < 1 or packed.size != (layers * rows + 7) // 8:
        raise LokiError(
            f"positions of the adapter are damaged: {packed.size} bytes for {layers} layers of {rows} rows; "
            "save or fetch the adapter again"
        )
    selected = np.unpackbits(packed, count=layers * rows).reshape(layers, rows)
    return check_positions([np.flatnonzero(row).tolist() for row in selected], origin="positions of the adapter")
