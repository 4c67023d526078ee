"""What can be evaluated: a model directory or hub id, a LoKI directory, or an adapter of PEFT."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loki.artefacts.positions import Positions, check_positions, read_positions
from loki.artefacts.provenance import config_digest
from loki.artefacts.run_layout import POSITIONS, RESTORED, RUN
from loki.errors import LokiError, one_line
from loki.files import sha256_of_file
from loki.inputs import read_json
from loki.models.loading import load_tokenizer
from loki.models.model_directory import AnyModel, ModelDirectory


@dataclass(frozen=True)
class Subject:
    """A model that can be evaluated.

    Attributes:
        name: as the user named it.
        model: the model, or the base that an adapter stands on.
        adapter: directory of the adapter; None for a whole model.
        positions: the rows that LoKI may have changed; None where they are not known.
    """

    name: str
    model: ModelDirectory
    adapter: Path | None = None
    positions: Positions | None = None

    def fingerprint(self) -> str:
        """Hash of all weights, of the configuration, and of the adapter; equal means the same model."""
        parts = [self.model.fingerprint, config_digest(self.model.path)]
        if self.adapter is not None:
            parts += [sha256_of_file(self.adapter / name) for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]

    def load(
        self, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, in evaluation mode, and its tokenizer. An adapter stays beside the weights, unmerged.

        Raises:
            LokiError: if either cannot be loaded.
        """
        model = self.model.load(dtype=dtype, device=device)
        if self.adapter is None:
            return model, self.model.tokenizer
        own_tokenizer = (self.adapter / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(self.adapter) if own_tokenizer else self.model.tokenizer
        try:
            with_adapter = PeftModel.from_pretrained(model, self.adapter, use_safetensors=True)
        except LokiError:
            raise
        except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
            raise LokiError(
                f"adapter {self.adapter} cannot be put on {self.model} ({one_line(error)}): check its base model"
            ) from error
        # The base with the adapter's layers in it, which answers as the whole does and is an ordinary model.
        loaded: PreTrainedModel = with_adapter.get_base_model()
        return loaded.eval(), tokenizer


def find_subject(name: AnyModel, *, positions: Positions | None = None, trust_remote_code: bool = False) -> Subject:
    """What `name` stands for.

    Args:
        name: a model directory, a LoKI directory, an adapter of PEFT, or a hub id of one.
        positions: the rows that may differ, where the user knows them; a LoKI directory or adapter knows its own, and
            the restored model of a run has them beside it.
        trust_remote_code: run Python code that the model brings along.

    Raises:
        LokiError: if there is no such thing, or an adapter cannot be evaluated.
    """
    model = ModelDirectory.of(name, trust_remote_code=trust_remote_code)
    directory = model.path
    if not (directory / CONFIG_NAME).is_file() or (directory / "config.json").is_file():
        own = getattr(model.config, "target_pos", None)
        if own is not None:
            positions = check_positions(own, origin=f"target_pos in the configuration of {directory}")
        elif positions is None:
            positions = _positions_of_run(directory)
        return Subject(str(name), model, positions=positions)
    if not (directory / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise LokiError(f"adapter {directory} has no {SAFETENSORS_WEIGHTS_NAME}: LoKI reads safetensors only")
    config = _adapter_config(directory)
    if config.is_prompt_learning:
        raise LokiError(
            f"adapter {directory} is a {config.peft_type.value}, which changes the prompt and not the model: "
            "LoKI compares adapters of weights (LoRA, LoKI, IA3, ...)"
        )
    base = config.base_model_name_or_path
    if not base:
        raise LokiError(f"adapter {directory} names no base model: set base_model_name_or_path in its {CONFIG_NAME}")
    # An adapter of another method changes more than rows, whatever rows the user names.
    known = ModelDirectory(base, trust_remote_code=trust_remote_code)
    return Subject(str(name), known, directory, getattr(config, "row_lists", None))


def _positions_of_run(directory: Path) -> Positions | None:
    """The rows that a run has trained, if `directory` is its restored model (`loki.pipeline`)."""
    run = directory.resolve().parent
    file = run / POSITIONS
    known = directory.resolve().name == RESTORED and (run / RUN).is_file() and file.is_file()
    return read_positions(file) if known else None


def _adapter_config(directory: Path) -> Any:
    import loki.implanting.peft  # noqa: F401 - makes PEFT know LoKI's adapters

    read_json(directory / CONFIG_NAME, what="adapter configuration")
    try:
        return PeftConfig.from_pretrained(str(directory))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LokiError(f"{directory / CONFIG_NAME} is not an adapter's configuration ({one_line(error)})") from error
