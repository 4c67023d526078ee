"""Changes of rows that are too small for the type that the model is written in."""

import logging

import torch

from loki.errors import LokiError

_log = logging.getLogger(__name__)


class RoundedRows:
    """Counts which changed rows are still changed once they are rounded.

    A row may stand in several tensors: its weights, its bias, those of every expert. It is changed where one is.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def count(self, layer: int, moved: torch.Tensor, kept: torch.Tensor) -> None:
        """Look at the selected rows in one tensor.

        Args:
            layer: number of the layer that they belong to.
            moved: which of them training changed, `[k]`.
            kept: which of them differ from the base's as they are written, `[k]`.
        """
        known = self._layers.get(layer)
        self._layers[layer] = (moved, kept) if known is None else (known[0] | moved, known[1] | kept)

    @property
    def changed(self) -> int:
        """Number of rows that differ from the base's as they are written."""
        return sum(int(kept.sum()) for _, kept in self._layers.values())

    @property
    def vanished(self) -> int:
        """Number of rows that training changed, and that are written as the base's."""
        return sum(int((moved & ~kept).sum()) for moved, kept in self._layers.values())

    def check(self, origin: str, *, allow_none: bool) -> None:
        """Refuse a model of which nothing is left.

        Args:
            origin: what is restored.
            allow_none: accept it.

        Raises:
            LokiError: if rows were changed, and all changes vanished.
        """
        if self.vanished and not self.changed and not allow_none:
            raise LokiError(
                f"{origin}: all {self.vanished} rows change by less than the base's type can hold: restore it on the "
                "base in float32, or pass --allow-unchanged"
            )

    def say(self) -> None:
        """Warn of what vanished."""
        if self.vanished:
            _log.warning(
                "%s of %s changed rows change by less than the base's type can hold, and are the base's: restore on "
                "the base in float32 to keep them",
                self.vanished,
                self.changed + self.vanished,
            )
