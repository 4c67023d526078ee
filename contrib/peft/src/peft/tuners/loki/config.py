# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.utils import PeftType


@dataclass
class LokiConfig(PeftConfig):
    """
    This is the configuration class to store the configuration of a [`LokiModel`].

    LoKI trains some rows of the output projection of every MLP, and nothing else.

    Args:
        target_modules (`Union[list[str], str]`, *optional*):
            The names of the output projections, or a regex expression that matches them. If not specified, they are
            chosen according to the model architecture.
        positions (`list[list[int]]`, *optional*):
            The rows (output features) to train: the n-th list for the n-th target module, in the order of the model.
            An empty list leaves a module as it is.
        quota (`float`, *optional*):
            In place of `positions`: the percentage of rows that is drawn at random from every target module, 10 if
            neither is given, and at least one row. What was drawn is saved as `positions`.
        seed (`int`):
            The seed of that draw.
        rank (`int`, *optional*):
            If not specified, the rows themselves are trained, `k * in_features` values for `k` rows. Otherwise a
            product of that rank, `rank * (k + in_features)` values (equation 11 of the paper).
        protect (`float`, *optional*):
            The share of input directions that is left alone. The rows are then trained along the other ones, which
            the base model uses least. Needs `moments` when an adapter is created, not when one is loaded.
        moments (`str`, *optional*):
            The safetensors file with the second moments of the inputs of the target modules, see
            [`~peft.tuners.loki.measure_second_moments`]. It is not saved.
        directions_shape (`list[int]`, *optional*):
            The shape of the directions that are saved with the adapter. Set when it is created.
        init_weights (`bool`):
            If `True`, the adapter changes nothing until it is trained. `False` is for tests.
        modules_to_save (`list[str]`, *optional*):
            The names of modules apart from the adapter layers to be trained and saved in the final checkpoint.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Names of the MLPs' output projections, or a regex expression that matches them. If not specified, "
                "they are chosen according to the model architecture."
            )
        },
    )
    positions: list[list[int]] | None = field(
        default=None,
        metadata={"help": "Rows to train: the n-th list for the n-th target module, in the order of the model."},
    )
    quota: float | None = field(
        default=None,
        metadata={"help": "In place of `positions`: percentage of rows drawn at random from every target module."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draw that `quota` asks for."})
    rank: int | None = field(
        default=None, metadata={"help": "Rank of the change of the rows. If not specified, full rows are trained."}
    )
    protect: float | None = field(
        default=None, metadata={"help": "Share of input directions left alone, those that the base model uses most."}
    )
    moments: str | None = field(
        default=None, metadata={"help": "safetensors file with second moments of the inputs, for `protect`."}
    )
    directions_shape: list[int] | None = field(
        default=None, metadata={"help": "Shape of the saved input directions. Set when an adapter is created."}
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "If True, the adapter changes nothing until it is trained. False is for tests."},
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules apart from the adapter layers to be trained and saved in the final checkpoint."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.LOKI
        self.target_modules = (
            set(self.target_modules) if isinstance(self.target_modules, list) else self.target_modules
        )
        if self.positions is not None and self.quota is not None:
            raise ValueError("`positions` and `quota` exclude each other.")
        if self.positions is None and self.quota is None:
            self.quota = 10.0
        if self.quota is not None and not 0 < self.quota <= 100:
            raise ValueError(f"`quota` is a percentage above 0, got {self.quota}.")
        if self.positions is not None:
            for number, rows in enumerate(self.positions):
                if any(isinstance(row, bool) or not isinstance(row, int) or row < 0 for row in rows):
                    raise ValueError(f"`positions[{number}]` holds something else than row indices.")
                if len(set(rows)) != len(rows):
                    raise ValueError(f"`positions[{number}]` names a row twice.")
            self.positions = [sorted(rows) for rows in self.positions]
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"`rank` should be a positive integer value but the value passed is {self.rank}.")
        if self.protect is not None and not 0 < self.protect < 1:
            raise ValueError(f"`protect` is a share between 0 and 1, got {self.protect}.")
        if self.protect is not None and self.rank is not None:
            raise ValueError("`protect` and `rank` exclude each other.")
        if self.moments is not None and self.protect is None:
            raise ValueError("`moments` are for `protect`, which is not set.")

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if self.positions is not None:
            values["quota"] = None  # what it has drawn is in the positions
        values["moments"] = None
        return values
