"""Training data for a given model: its tokenizer and chat template, and what its files say of tokens and positions."""

from collections.abc import Set
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from loki.data.examples import TrainingRecords, load_training_data
from loki.data.fitting import TrainingData, fit_to_model, length_within
from loki.data.settings import DataSettings
from loki.data.sources import Data
from loki.errors import LokiError, one_line
from loki.files import atomic_file
from loki.inputs import read_text
from loki.models.loading import check_generation_config, load_tokenizer
from loki.models.model_directory import ModelDirectory

_DEFAULTS = DataSettings()
_SHIPPED = Path(__file__).parent / "chat_templates"


def training_tokenizer(model: ModelDirectory, chat_template: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with another chat template if one is given.

    Args:
        model: the model's directory.
        chat_template: Jinja file, or the name of a template that LoKI brings (`shipped_templates`); None for the
            tokenizer's own template.

    Raises:
        LokiError: if the directory holds no tokenizer, or the file is missing, empty or no template.
    """
    if chat_template is None:
        return model.tokenizer
    tokenizer = load_tokenizer(model.path, trust_remote_code=model.trust_remote_code)
    set_chat_template(tokenizer, chat_template)
    return tokenizer


def set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | Path) -> None:
    """Give a tokenizer another chat template.

    Args:
        tokenizer: it is changed.
        chat_template: Jinja file, or the name of a template that LoKI brings (`shipped_templates`).

    Raises:
        LokiError: if the file is missing, empty or no template.
    """
    file = shipped_templates().get(str(chat_template), Path(chat_template))
    tokenizer.chat_template = read_text(file, what="chat template")
    try:
        shown = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    except Exception as error:  # a template is a program: anything may go wrong in it
        raise LokiError(f"chat template {chat_template} does not work ({one_line(error)}): correct it") from error
    if "hi" not in str(shown):
        raise LokiError(f"chat template {chat_template} does not show what a user says: correct it")


def shipped_templates() -> dict[str, Path]:
    """The chat templates that LoKI brings, by name: `hermes` is ChatML with tools, for models that have neither."""
    return {file.stem: file for file in sorted(_SHIPPED.glob("*.jinja"))}


def save_chat_template(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the tokenizer's chat template into a model directory, where it goes before any other that is there."""
    with atomic_file(directory / "chat_template.jinja", overwrite=True) as temporary:
        temporary.write_text(tokenizer.get_chat_template(), encoding="utf-8")


def end_tokens(model: ModelDirectory) -> Set[int]:
    """The ids of the tokens at which generation stops: the tokenizer's, and those of generation_config.json.

    Raises:
        LokiError: if generation_config.json cannot be read.
    """
    given = check_generation_config(model.path).eos_token_id
    ids = [model.tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])]
    return {token for token in ids if isinstance(token, int)}


def fit_records(
    records: TrainingRecords,
    model: ModelDirectory,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    seed: int = 0,
) -> TrainingData:
    """`fit_to_model` with what the model's files say of its vocabulary, its positions and the tokens that end a turn.

    Args:
        records: what to train on.
        model: the model's directory.
        tokenizer: see `training_tokenizer`.
        max_length: tokens per example; fewer where the model has no more positions.
        seed: of the draw where sources are weighted.

    Raises:
        LokiError: for what `fit_to_model` refuses.
    """
    return fit_to_model(
        records,
        tokenizer,
        length_within(model.config, max_length),
        vocab_size=getattr(model.text_config, "vocab_size", None),
        end_tokens=end_tokens(model),
        seed=seed,
    )


def prepare_training_data(
    data: Data,
    model: ModelDirectory,
    max_length: int,
    settings: DataSettings = _DEFAULTS,
    *,
    held_out: bool = False,
    seed: int = 0,
) -> TrainingData:
    """Read training data for a model in one step.

    Args:
        data: one source or several, see `load_training_data`.
        model: the model's directory.
        max_length: tokens per example; fewer where the model has no more positions.
        settings: which part of the data, and how conversations are rendered.
        held_out: whether it is held-out data, which has a split of its own.
        seed: of the draw where sources are weighted.

    Raises:
        LokiError: for what `training_tokenizer`, `load_training_data` and `fit_to_model` refuse.
    """
    tokenizer = training_tokenizer(model, settings.chat_template)
    records = load_training_data(
        data,
        chat_template=bool(tokenizer.chat_template),
        split=settings.eval_split if held_out else settings.data_split,
        subset=settings.data_subset,
        what="held-out data" if held_out else "training data",
    )
    return fit_records(records, model, tokenizer, max_length, seed=seed)
