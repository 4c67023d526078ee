"""What keeps damage low while rows are trained, beside the choice of rows and of input directions."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel, TrainerCallback

from loki.calibration.texts import load_token_ids
from loki.data.fitting import length_within
from loki.data.sources import Data, local_paths
from loki.errors import LokiError, require, require_counts
from loki.files import sha256_of_file
from loki.implanting.base_rows import remember_base
from loki.implanting.training.base_predictions import base_predictions
from loki.implanting.training.damage import DamageBudget, check_budget
from loki.implanting.training.keep import NEW, KeepTerm
from loki.implanting.training.material import Material
from loki.implanting.training.replay import Replay, check_fraction
from loki.inputs import require_text_file
from loki.models.architectures import text_config


@dataclass(frozen=True)
class Levers:
    """Levers of one training; the defaults use none.

    Attributes:
        keep: general text (`loki.calibration.texts`) on which the model is held to its base by a term of
            KL(base || model) in the loss; `new` takes the prompts of the training data; None adds nothing.
        keep_weight: factor of that term; 0 gives the training without it, to the last bit.
        keep_batch: windows of text per batch.
        keep_length: tokens per window.
        keep_top_k: likeliest tokens of every position of that text that are kept of the base's predictions on disk (see
            `loki.implanting.training.base_predictions`); None asks the base at every step, about all tokens.
        max_damage: nats of KL(base || model) per token on the text of `keep` above which training stops, and goes back
            to where it was below; 0 trains nothing. None sets no limit.
        damage_every: optimiser steps between two looks at the damage.
        damage_windows: windows that it is looked at on.
        replay: general examples to mix into the training data, in any of its forms; None mixes in nothing.
        replay_fraction: their share among all examples.

    Raises:
        LokiError: if a value is out of range, or one needs `keep` and there is none.
    """

    keep: str | None = None
    keep_weight: float = 1.0
    keep_batch: int = 4
    keep_length: int = 128
    keep_top_k: int | None = None
    max_damage: float | None = None
    damage_every: int = 10
    damage_windows: int = 16
    replay: Data | None = None
    replay_fraction: float = 0.01

    def __post_init__(self) -> None:
        for name in ("keep_batch", "damage_every", "damage_windows"):
            require(self, name, getattr(self, name) > 0, "above 0")
        KeepTerm(None, self.keep_weight, self.keep_batch)  # checks the weight
        check_fraction(self.replay_fraction)
        if self.keep_top_k is not None:
            require_counts(self, "keep_top_k")
            if self.keep in (None, NEW):
                raise LokiError("--keep-top-k is about general text: give it as --keep DATA, or leave it out")
        if self.max_damage is not None:
            check_budget(self.max_damage)
            if self.keep in (None, NEW):
                raise LokiError(
                    "--max-damage is looked at on general text: give it as --keep DATA (--keep-weight 0 if "
                    "nothing of it is to be trained on)"
                )

    @property
    def keeps(self) -> bool:
        """Whether the base has to be remembered."""
        return self.keep is not None

    @property
    def inputs(self) -> list[Path]:
        """The files and directories that are read."""
        kept = [Path(self.keep)] if self.keep not in (None, NEW) and Path(str(self.keep)).exists() else []
        return kept + (local_paths(self.replay) if self.replay else [])

    def record(self, replay: Replay | None) -> dict[str, Any]:
        """What decides a training's result, as JSON values; empty without levers.

        Args:
            replay: what was read of `replay`.
        """
        values = asdict(self)
        replayed = {"replay_fraction": values.pop("replay_fraction"), "replay": values.pop("replay")}
        found: dict[str, Any] = {}
        if self.keeps:
            found |= values
            if self.keep_top_k is None:  # as in records of earlier releases
                del found["keep_top_k"]
            found["keep"] = digest_of_input(Path(str(self.keep))) if Path(str(self.keep)).is_file() else self.keep
        if replay:
            found |= {**replayed, "replay": replay.general.digest}
        return found

    def prepare(self, model: PreTrainedModel, material: Material, console: Console) -> "PreparedLevers":
        """Read the text, and remember the base's rows; before the rows are trained or a checkpoint is loaded.

        Args:
            model: to be trained.
            material: what it is trained with.
            console: where the damage is said.

        Raises:
            LokiError: if the text cannot be read, or FSDP is on.
        """
        if not self.keeps:
            return PreparedLevers(None, None)
        remember_base(model)
        config, windows, predictions = material.config, None, None
        if self.keep != NEW:
            windows = load_token_ids(
                str(self.keep),
                material.tokenizer,
                max_length=length_within(config, self.keep_length),
                vocab_size=text_config(config).vocab_size,
            )
        if windows is not None and self.keep_top_k is not None and self.keep_weight > 0:
            predictions = base_predictions(model, windows, self.keep_top_k, material.directory.fingerprint)
        budget = None
        if self.max_damage is not None:
            assert windows is not None
            spread = windows[:: max(1, len(windows) // self.damage_windows)][: self.damage_windows]
            budget = DamageBudget(spread, self.max_damage, self.damage_every, console)
        return PreparedLevers(KeepTerm(windows, self.keep_weight, self.keep_batch, predictions), budget)


def digest_of_input(file: Path) -> str:
    """SHA-256 of a file of text to keep or of examples to replay.

    Raises:
        LokiError: if it is too large to be read, which would be found out after it was hashed.
    """
    require_text_file(file, "data")
    return sha256_of_file(file)


@dataclass(frozen=True)
class PreparedLevers:
    """Levers, ready for a trainer.

    Attributes:
        term: what is added to the loss, if anything.
        budget: what watches over the damage, if anything.
    """

    term: KeepTerm | None
    budget: DamageBudget | None

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """Callbacks for the trainer, after that of the selected rows."""
        return [] if self.budget is None else [self.budget]

    @property
    def nothing_trained(self) -> bool:
        """Whether the budget allowed no step at all."""
        return self.budget is not None and self.budget.left and self.budget.inside_damage == 0
