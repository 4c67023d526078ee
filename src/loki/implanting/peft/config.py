"""Configuration of a LoKI adapter."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType, TaskType

from loki.artefacts.positions import Positions, check_positions, read_positions
from loki.errors import LokiError
from loki.implanting.directions import Directions, check_protect
from loki.implanting.peft.base_weight import is_fingerprint
from loki.implanting.peft.old_positions import PositionsMask, decode_positions
from loki.models.experts import Experts, find_experts


@dataclass
class LoKIConfig(PeftConfig):  # type: ignore[misc]
    """Trains the selected rows of every layer's MLP output projection (`down_proj.weight`) and nothing else.

    `get_peft_model(model, LoKIConfig(positions="pos.json"))` changes no output until it is trained.

    Attributes:
        positions: row indices, one list per layer: the lists themselves (from `loki.selection`), or the path of a
            positions file. Read when the configuration is made; sorted lists afterwards.
        rank: None trains the rows themselves (`k * d_ff` values per layer with `k` rows). A number `r` trains a product
            of that rank instead, `dW_S = A B` (equation 11 of the LoKI paper; `r * (k + d_ff)` values).
        protect: None trains along all input directions. A share, 0.5, leaves the directions alone that the base model
            uses most, and trains `dW_S = C U^T` along the others (`loki.implanting.directions`). `U` is saved with `C`.
        moments: file of second moments that `U` is taken from; needed to make an adapter with `protect`, not to load
            one, and not saved.
        directions_shape: of `U` in one layer, `[blocks, n, r]`. Written when the adapter is made.
        directions_digests: hash of `U` for every layer, None where it has no rows; other directions are refused. None
            for all, as other programs save it, takes any.
        experts: which rows are meant where the model has experts: `shared`, `dense` or `all`, see
            `loki.models.experts.Experts`. Such a model needs it, and no other takes it. With `all` each expert has the
            numbers of values above.
        target_modules: names (or one regular expression) of the projections, for models whose structure is unknown to
            `loki.models.architectures`; the n-th match takes the n-th list of positions. None: found by structure.
        rows_per_layer: rows `D` of a projection. None: taken from the base model. A base with another number is
            refused.
        base_fingerprint: of the selected rows of the base (`base_weight.base_fingerprint`). Written when the adapter is
            saved; where it is given, another base is refused. None: any base whose shape fits.
        base_values: the same in their own precision, for `loki restore`. None: any precision.
        base_parts: of the other weights of its layers (`base_parts.base_parts`), for `loki restore`. None: any.
        task_type: CAUSAL_LM or None; other tasks add a head, of which nothing would be trained or saved.

    Raises:
        LokiError: if the task is another one, the positions are missing or malformed, the rank is not a positive
            number, or `protect` is not a share or is given with a rank or `experts="all"`.
    """

    task_type: TaskType | str | None = field(default=TaskType.CAUSAL_LM)
    positions: Positions | PositionsMask | str | os.PathLike[str] | None = None
    rank: int | None = None
    protect: float | None = None
    moments: str | os.PathLike[str] | None = None
    directions_shape: list[int] | None = None
    directions_digests: list[str | None] | None = None
    experts: str | None = None
    target_modules: list[str] | str | None = None
    rows_per_layer: int | None = None
    base_fingerprint: str | None = None
    base_values: str | None = None
    base_parts: dict[str, str] | None = None

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
        for name in ("base_fingerprint", "base_values"):
            if getattr(self, name) is not None and not is_fingerprint(getattr(self, name)):
                raise LokiError(
                    f"LoKIConfig: {name} {getattr(self, name)!r} is damaged: save or fetch the adapter again"
                )
        for part, value in (self.base_parts or {}).items():
            if not is_fingerprint(value):
                raise LokiError(f"LoKIConfig: base_parts, {part}: damaged: save or fetch the adapter again")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise LokiError(f"LoKIConfig: rank {self.rank!r} is not a positive number; None trains the full rows")
        self.experts = find_experts(self.experts)
        if self.protect is not None:
            check_protect(self.protect)
            if self.experts == Experts.ALL:
                raise LokiError("LoKIConfig: experts='all' protects no input directions: leave protect out")
            if self.rank is not None:
                raise LokiError("LoKIConfig: protect and rank exclude each other: leave out one of them")
        elif self.moments is not None:
            raise LokiError("LoKIConfig: moments are for protect: give its share, 0.5, as well")
        # What the model at hand has, as opposed to what a saved adapter demands: written out by `to_dict`, so that one
        # configuration can be applied to several models.
        self.found_rows: int | None = None
        self.found_fingerprint: str | None = None
        self.found_values: str | None = None
        self.found_parts: dict[str, str] = {}
        self.found_directions: Directions = {}  # made from the moments

    @property
    def row_lists(self) -> Positions:
        """The positions, sorted lists: one per layer."""
        assert isinstance(self.positions, list)
        return self.positions

    def with_full_rows(self, positions: Positions) -> "LoKIConfig":
        """The configuration of an adapter of the same base that trains other rows, along all directions."""
        return replace(
            self,
            positions=positions,
            rank=None,
            protect=None,
            moments=None,
            directions_shape=None,
            directions_digests=None,
            base_fingerprint=None,
            base_values=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration for JSON."""
        values: dict[str, Any] = super().to_dict()
        del values["moments"]
        values["rows_per_layer"] = self.rows_per_layer or self.found_rows
        values["base_fingerprint"] = self.base_fingerprint or self.found_fingerprint
        values["base_values"] = self.base_values or self.found_values
        values["base_parts"] = self.base_parts or self.found_parts or None
        return values
