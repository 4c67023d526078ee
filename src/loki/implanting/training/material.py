"""What a training reads, checked before anything is written: the model's configuration, its tokenizer, the data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from loki.artefacts.positions import Positions, check_positions, read_positions
from loki.data.examples import TrainingRecords, load_training_data
from loki.data.fitting import TrainingData, length_within
from loki.data.preparing import fit_records, training_tokenizer
from loki.data.settings import DataSettings
from loki.data.sources import Data
from loki.errors import LokiError
from loki.implanting.create import loki_configuration
from loki.implanting.modeling import LoKIConfigMixin
from loki.implanting.splitting import active_parameters
from loki.implanting.training.encoded import Encoded
from loki.models.architectures import text_config
from loki.models.classes import skeleton
from loki.models.model_directory import AnyModel, ModelDirectory

_DEFAULTS = DataSettings()


@dataclass(frozen=True)
class Material:
    """What a model is trained from.

    Attributes:
        directory: the model's.
        config: the LoKI configuration, which holds the positions.
        tokenizer: the model's.
        records: what to train on, and what to compute the loss on beside it, if anything, as `train` and `held_out`.
        tokenised: the same as examples; nothing where the back end makes them of the records.
        max_length: tokens per example; no more than the model has positions for.
    """

    directory: ModelDirectory
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    records: dict[str, TrainingRecords]
    tokenised: dict[str, TrainingData]
    max_length: int

    @property
    def examples(self) -> TrainingData:
        """What to train on."""
        return self.tokenised["train"]

    @property
    def held_out(self) -> TrainingData | None:
        """What to compute the loss on beside it, if anything."""
        return self.tokenised.get("held_out")

    @property
    def summary(self) -> str:
        """The training data in one line."""
        return str(self.tokenised.get("train") or f"{len(self.records['train'].items)} training records")

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The LoKI model without weights."""
        return skeleton(self.config)

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The training examples as tokens."""
        return encode_examples(self.examples)

    @cached_property
    def encoded_held_out(self) -> list[Encoded] | None:
        """The held-out examples as tokens."""
        return encode_examples(self.held_out) if self.held_out else None

    @property
    def trainable_parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in active_parameters(self.skeleton).values())

    @property
    def parameters(self) -> int:
        """Number of the model's values; its frozen weights hold a place for every row."""
        return int(self.skeleton.num_parameters()) - self.trainable_parameters


def read_material(
    model: AnyModel,
    data: Data,
    *,
    positions: Path | None,
    eval_data: Data | None,
    max_length: int,
    data_settings: DataSettings = _DEFAULTS,
    seed: int = 0,
    foreign_template: bool = False,
    trust_remote_code: bool = False,
) -> Material:
    """Read and check what a training needs.

    Args:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data, see `load_training_data`.
        positions: positions file, for an ordinary model.
        eval_data: held-out data.
        max_length: tokens per example.
        data_settings: which part of the data, and how conversations are rendered.
        seed: of the draw where sources are weighted.
        foreign_template: whether the back end has a chat template of its own, so that the tokenizer's is not asked.
        trust_remote_code: run Python code that the model brings along.

    Raises:
        LokiError: if the model is missing, damaged or of an unsupported kind, the positions do not fit it, or are
            missing or superfluous, or data cannot be used.
    """
    directory = ModelDirectory.of(model, trust_remote_code=trust_remote_code)
    config = training_configuration(directory, positions)
    tokenizer = training_tokenizer(directory, data_settings.chat_template)
    length = length_within(config, max_length)
    chat_template = foreign_template or bool(tokenizer.chat_template)
    subset = data_settings.data_subset

    def read(source: Data, split: str | None, what: str) -> TrainingRecords:
        return load_training_data(source, chat_template=chat_template, split=split, subset=subset, what=what)

    records = {"train": read(data, data_settings.data_split, "training data")}
    if eval_data:
        records["held_out"] = read(eval_data, data_settings.eval_split, "held-out data")
    tokenised = {
        name: fit_records(part, directory, tokenizer, length, seed=seed)
        for name, part in records.items()
        if not foreign_template
    }
    return Material(directory, config, tokenizer, records, tokenised, length)


def training_configuration(model: AnyModel, positions: Path | None) -> PretrainedConfig:
    """The LoKI configuration to train `model` with.

    Args:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        positions: positions file, for an ordinary model.

    Raises:
        LokiError: if the model is missing, damaged or of an unsupported kind, the positions do not fit it, or are
            missing or superfluous.
    """
    directory = ModelDirectory.of(model)
    directory.check()
    config = directory.config
    if isinstance(config, LoKIConfigMixin):
        if positions is not None:
            raise LokiError(f"{model} is a LoKI model, which holds its positions: leave out --positions")
        if config.target_pos is None:
            raise LokiError(f"{model} is a LoKI model without target_pos: make it anew with `loki create`")
        text = text_config(config)
        origin = f"target_pos of {model}"
        check_positions(config.target_pos, layers=text.num_hidden_layers, hidden=text.hidden_size, origin=origin)
        return config
    if positions is None:
        raise LokiError(f"{model} is an ordinary model: give --positions, or make a LoKI model with `loki create`")
    if directory.experts is None and directory.has_experts:
        raise LokiError(f"{model} has experts: make a LoKI model of it with `loki create --experts`, and train that")
    return loki_configuration(directory, read_positions(positions), origin=f"positions file {positions}")


def quota_of(config: PretrainedConfig) -> float:
    """Percentage of the rows that the positions in a LoKI configuration make up."""
    positions: Positions = config.target_pos
    hidden: int = text_config(config).hidden_size
    return 100 * sum(map(len, positions)) / (len(positions) * hidden)


def encode_examples(data: TrainingData) -> list[Encoded]:
    """Training data as token ids with what is trained of them."""
    return [
        Encoded(row["input_ids"], [bool(trained) for trained in row["completion_mask"]])
        for row in data.dataset.to_list()
    ]
