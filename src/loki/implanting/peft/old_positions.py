"""Positions as older releases stored them in adapters: as a bitmask."""

import base64
import binascii
from typing import TypedDict

import numpy as np

from loki.artefacts.positions import Positions, check_positions
from loki.errors import LokiError


class PositionsMask(TypedDict):
    """What stands in the `adapter_config.json` of such an adapter.

    Attributes:
        layers: number of layers `L`.
        rows: number of rows `D` per layer.
        bitmask: base64 of `L * D` bits, layer after layer, the first row in the highest bit; set where selected.
    """

    layers: int
    rows: int
    bitmask: str


def decode_positions(mask: PositionsMask) -> Positions:
    """Unpack a bitmask.

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
