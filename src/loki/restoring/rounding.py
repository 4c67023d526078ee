"""Changes of rows that are too small for the type that the model is written in."""

import logging
from dataclasses import dataclass

import torch

from loki.errors import LokiError

_log = logging.getLogger(__name__)


@dataclass
class RoundedRows:
    """Counts which changed rows are still changed once they are rounded.

    Attributes:
        changed: rows that differ from the base's as they are written.
        vanished: rows that training changed, and that are written as the base's.
    """

    changed: int = 0
    vanished: int = 0

    def count(self, before: torch.Tensor, moved: torch.Tensor, after: torch.Tensor) -> None:
        """Look at the selected rows of one weight.

        Args:
            before: the base's, `[k, d_ff]`, in the type that is written.
            moved: whether training changed each, `[k]`.
            after: as they are written, `[k, d_ff]`.
        """
        kept = int((after != before).any(dim=1).sum())
        self.changed += kept
        self.vanished += int(moved.sum()) - kept

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
