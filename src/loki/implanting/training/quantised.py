"""Training rows while the frozen weights are held in 4 or 8 bits, as QLoRA does: less memory, and nothing lost.

bitsandbytes quantises every Linear but those that hold selected rows and the output head. What is saved are the
weights of the directory that the model was loaded from, with the trained rows in place: nothing quantised reaches a
disk. The rows learn to work with the rounded weights around them, which is what remains of the rounding.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from loki.artefacts.training_settings import TrainingSettings
from loki.errors import LokiError
from loki.implanting.modeling import loki_classes
from loki.implanting.splitting import loki_linears, put_rows
from loki.implanting.training.rows import ROWS_FILE
from loki.models.architectures import base_model_type
from loki.models.classes import skeleton
from loki.models.experts import Experts
from loki.models.loading import load_weights
from loki.ranks import pick_device

_MARKS = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")


def check_quantised(settings: TrainingSettings, *, sharded: bool) -> None:
    """Refuse what cannot be done with quantised weights.

    Args:
        settings: how to train.
        sharded: whether no process holds the whole model.

    Raises:
        LokiError: if bitsandbytes is missing, or the weights are to be sharded.
    """
    if settings.bits is None:
        return
    option = f"--load-in-{settings.bits}bit"
    if find_spec("bitsandbytes") is None:
        raise LokiError(f"{option} needs the package bitsandbytes: install it (`pip install bitsandbytes`)")
    if sharded:
        raise LokiError(f"{option} holds the whole model in every process: train without FSDP and DeepSpeed")


def load_to_train(config: PretrainedConfig, directory: Path, settings: TrainingSettings) -> PreTrainedModel:
    """A LoKI model as it is trained: its frozen weights quantised, if the settings say so.

    Args:
        config: its configuration.
        directory: its directory.
        settings: how to train.

    Raises:
        LokiError: for what `load_weights` refuses, and if rows of all experts were to be trained beside quantised
            weights.
    """
    if settings.bits is not None and getattr(config, "experts", None) == Experts.ALL:
        raise LokiError(
            f"--load-in-{settings.bits}bit quantises no experts, so it does not go with --experts all: leave it out, "
            "or make the LoKI model with --experts shared or dense"
        )
    model_class = loki_classes(base_model_type(config.model_type))[1]
    if settings.bits is None:
        return load_weights(model_class, directory, config=config, dtype="auto")
    loaded = load_weights(
        model_class,
        directory,
        config=config,
        dtype="auto",
        device_map={"": pick_device()},
        quantization_config=_bits(config, settings.bits),
    )
    # Transformers trains nothing quantised without an adapter, and would save what is quantised: here neither happens.
    for mark in _MARKS:
        if hasattr(loaded, mark):
            setattr(loaded, mark, False)
    del loaded.hf_quantizer, loaded.config.quantization_config
    loaded.unquantised = directory
    return loaded


def put_best_rows(model: PreTrainedModel, checkpoint: Path) -> None:
    """Put the rows of a checkpoint into a model whose frozen weights are quantised."""
    put_rows(model, load_file(checkpoint / ROWS_FILE))


def _bits(config: PretrainedConfig, bits: int) -> BitsAndBytesConfig:
    model = skeleton(config)
    head = model.get_output_embeddings()
    kept = [*loki_linears(model), *(name for name, module in model.named_modules() if module is head)]
    options: dict[str, Any] = {"load_in_8bit": True}
    if bits == 4:
        dtype = config.dtype or torch.float32
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    return BitsAndBytesConfig(**options, llm_int8_skip_modules=kept)
