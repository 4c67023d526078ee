"""Configuration of a LoKI adapter."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType, TaskType

from loki.artefacts.positions import Positions, check_positions, read_positions
from loki.errors import LokiError
from loki.implanting.peft.base_weight import is_fingerprint
from loki.implanting.peft.positions_codec import PositionsMask, decode_positions, encode_positions


@dataclass
class LoKIConfig(PeftConfig):  # type: ignore[misc]
    """Trains the selected rows of every layer's MLP output projection (`down_proj.weight`) and nothing else.

    `get_peft_model(model, LoKIConfig(positions="pos.json"))` changes no output until it is trained. In
    `adapter_config.json` the positions are a bitmask (`positions_codec`).

    Attributes:
        positions: row indices, one list per layer: the lists themselves (from `loki.selection`), or the path of a
            positions file. Read when the configuration is made; sorted lists afterwards.
        rank: None trains the rows themselves (`k * d_ff` values per layer with `k` rows). A number `r` trains a product
            of that rank instead, `dW_S = A B` (equation 11 of the LoKI paper; `r * (k + d_ff)` values).
        target_modules: names (or one regular expression) of the projections, for models whose structure is unknown to
            `loki.models.architectures`; the n-th match takes the n-th list of positions. None: found by structure.
        rows_per_layer: rows `D` of a projection. None: taken from the base model. A base with another number is
            refused.
        base_fingerprint: of the selected rows of the base (`base_weight.base_fingerprint`). Written when the adapter is
            saved; where it is given, another base is refused. None: any base whose shape fits.
        task_type: CAUSAL_LM or None; other tasks add a head, of which nothing would be trained or saved.

    Raises:
        LokiError: if the task is another one, the positions are missing or malformed, or the rank is no positive
            number.
    """

    task_type: TaskType | str | None = field(default=TaskType.CAUSAL_LM)
    positions: Positions | PositionsMask | str | os.PathLike[str] | None = None
    rank: int | None = None
    target_modules: list[str] | str | None = None
    rows_per_layer: int | None = None
    base_fingerprint: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_type not in (None, TaskType.CAUSAL_LM):
            raise LokiError(
                f"LoKIConfig: task_type {self.task_type!s} would train a new head, which a LoKI adapter does not hold: "
                "use CAUSAL_LM"
            )
        self.peft_type = PeftType("LOKI")
        if isinstance(self.positions, dict):
            self.rows_per_layer = self.positions.get("rows")
            self.positions = decode_positions(self.positions)
        elif isinstance(self.positions, (str, os.PathLike)):
            self.positions = read_positions(Path(self.positions))
        elif self.positions is None:
            raise LokiError("LoKIConfig needs positions: a positions file (loki select writes one) or a list per layer")
        else:
            self.positions = check_positions(self.positions)
        if self.base_fingerprint is not None and not is_fingerprint(self.base_fingerprint):
            raise LokiError(
                f"LoKIConfig: base_fingerprint {self.base_fingerprint!r} is damaged: save or fetch the adapter again"
            )
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise LokiError(f"LoKIConfig: rank {self.rank!r} is not a positive number; None trains the full rows")
        # What the model at hand has, as opposed to what a saved adapter demands: written out by `to_dict`, so that one
        # configuration can be applied to several models.
        self.found_rows: int | None = None
        self.found_fingerprint: str | None = None

    @property
    def row_lists(self) -> Positions:
        """The positions, sorted lists: one per layer."""
        assert isinstance(self.positions, list)
        return self.positions

    def to_dict(self) -> dict[str, Any]:
        """The configuration for JSON, with the positions as a bitmask."""
        values: dict[str, Any] = super().to_dict()
        rows = self.rows_per_layer or self.found_rows or 1 + max(max(row, default=0) for row in self.row_lists)
        values["positions"] = encode_positions(self.row_lists, rows)
        values["rows_per_layer"] = self.rows_per_layer or self.found_rows
        values["base_fingerprint"] = self.base_fingerprint or self.found_fingerprint
        return values
