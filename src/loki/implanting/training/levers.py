"""What keeps damage low while rows are trained, beside the choice of rows and of input directions."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from loki.calibration.texts import load_token_ids
from loki.data.examples import load_training_data
from loki.data.fitting import TrainingData, length_within
from loki.data.preparing import fit_records
from loki.data.sources import Data, local_paths
from loki.errors import LokiError, require, require_counts
from loki.files import sha256_of_file
from loki.implanting.training.base_predictions import check_top
from loki.implanting.training.damage import check_budget
from loki.implanting.training.keep import NEW, KeepTerm
from loki.implanting.training.lever_plan import LeverPlan
from loki.implanting.training.material import Material
from loki.implanting.training.replay import Replay, check_fraction
from loki.inputs import require_text_file
from loki.models.architectures import text_config
from loki.models.model_directory import ModelDirectory


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
        require(self, "keep_length", self.keep_length > 1, "above 1")
        KeepTerm(None, self.keep_weight, self.keep_batch)  # checks the weight
        check_fraction(self.replay_fraction)
        for name, needed in {"keep_weight": "keep", "replay_fraction": "replay"}.items():
            if getattr(self, needed) is None and getattr(self, name) != getattr(type(self), name):
                option = name.replace("_", "-")
                raise LokiError(f"--{option} {getattr(self, name)} needs --{needed}: give it, or leave this out")
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

    def read_replay(self, material: Material, *, seed: int) -> Replay | None:
        """Read the general examples to mix in, if there are to be any, and check that there are enough.

        Args:
            material: what they are mixed with.
            seed: of the draw.

        Raises:
            LokiError: if the data cannot be used, or there is too little of it.
        """
        if not self.replay:
            return None
        return self.replay_for(material.directory, material.tokenizer, material.examples, material.max_length, seed)

    def replay_for(
        self,
        directory: ModelDirectory,
        tokenizer: PreTrainedTokenizerBase,
        examples: TrainingData,
        max_length: int,
        seed: int,
    ) -> Replay:
        """The same for a model that is not yet a LoKI model.

        Args:
            directory: of the model.
            tokenizer: that the training data are rendered with.
            examples: what they are mixed with.
            max_length: tokens per example.
            seed: of the draw.
        """
        assert self.replay
        records = load_training_data(self.replay, chat_template=bool(tokenizer.chat_template), what="replay data")
        general = fit_records(records, directory, tokenizer, max_length, seed=seed)
        replay = Replay(general, self.replay_fraction, seed)
        replay.added(len(examples.dataset))
        return replay

    def read_text(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> list[list[int]] | None:
        """Windows of the general text as token ids; None where none is given.

        Args:
            tokenizer: of the model.
            config: of the model.

        Raises:
            LokiError: if the text cannot be read, or `keep_top_k` is out of range.
        """
        if self.keep in (None, NEW):
            return None
        vocabulary = text_config(config).vocab_size
        if self.keep_top_k is not None:
            check_top(self.keep_top_k, vocabulary)
        length = length_within(config, self.keep_length)
        return load_token_ids(str(self.keep), tokenizer, max_length=length, vocab_size=vocabulary)

    def plan(self, material: Material) -> LeverPlan:
        """Read the text: what the training is to do, for any process.

        Args:
            material: what is trained with.

        Raises:
            LokiError: if the text cannot be read.
        """
        return LeverPlan(
            keeps=self.keeps,
            windows=self.read_text(material.tokenizer, material.config),
            weight=self.keep_weight,
            per_step=self.keep_batch,
            top=self.keep_top_k,
            fingerprint=material.directory.fingerprint if self.keep_top_k is not None else "",
            max_damage=self.max_damage,
            damage_every=self.damage_every,
            damage_windows=self.damage_windows,
        )


def digest_of_input(file: Path) -> str:
    """SHA-256 of a file of text to keep or of examples to replay.

    Raises:
        LokiError: if it is too large to be read, which would be found out after it was hashed.
    """
    require_text_file(file, "data")
    return sha256_of_file(file)
