"""Loading a model, its configuration and its tokenizer, with every refusal as one clear line."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from loki.errors import LokiError
from loki.inputs import checked, read_json, reading
from loki.inputs.tensors import FLOATS
from loki.models.architectures import LOKI_MODEL_TYPE_PREFIX, base_model_type
from loki.models.checkpoint import check_weights, stored_tensors
from loki.models.classes import auto_class, class_of_type, own_code
from loki.models.config_schema import GenerationFields, TokenizerConfiguration, check_configuration
from loki.models.gguf_file import dequantised
from loki.models.hub import fetch

DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_GENERATES = ("CausalLM", "LMHead", "ConditionalGeneration")


def resolve_model(model: str | PathLike[str]) -> Path:
    """The local directory of `model`: a directory, or a hub id whose snapshot is fetched or found in the cache.

    A `.gguf` file stands for the directory that it is dequantised into, see `loki.models.gguf_file`.

    Raises:
        LokiError: if the directory does not exist, the hub cannot be reached, or the file cannot be dequantised.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".gguf":
        return dequantised(path)
    if path.exists():
        raise LokiError(f"model {model} is a file: name the directory that holds config.json and the weights")
    if path.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") > 1:
        raise LokiError(f"model directory {model} does not exist: check the path")
    return fetch(
        str(model),
        "is neither a local directory nor a hub model that can be fetched now",
        "check the name and the network, or give a local directory",
        ignore_patterns=["*.bin", "*.pt", "*.pth", "original/*", "*.gguf"],
    )


def load_config(model: str | PathLike[str], *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a decoder-only causal language model.

    Raises:
        LokiError: if there is no config.json, the model is not a decoder-only causal language model, or it needs its
            own code, which is not trusted.
    """
    path = resolve_model(model)
    file = path / "config.json"
    if not file.exists():
        raise LokiError(f"model directory {path} has no config.json: it is not a Transformers model")
    value = read_json(file, what="model configuration")
    tensors = stored_tensors(path)
    check_configuration(value, file, tensors)
    packed = next(
        (name for name, entry in tensors.items() if name.endswith("proj.weight") and entry.dtype not in FLOATS), None
    )
    if packed is not None and not value.get("quantization_config"):
        raise LokiError(
            f"model {path} holds {packed} as {tensors[packed].dtype}, and its config.json has no "
            "quantization_config that says how to read it: fetch it again, or use the unquantised base model"
        )
    trust = trust_remote_code and not str(value.get("model_type")).startswith(LOKI_MODEL_TYPE_PREFIX)
    if isinstance(value.get("auto_map"), dict) and value.get("model_type") not in CONFIG_MAPPING and not trust:
        raise LokiError(f"model {path} brings its own Python code: read it, and pass --trust-remote-code to run it")
    with reading("model configuration", file, advice="correct it, or fetch or save the model again"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        architectures = list(map(str, config.architectures or []))
    _check_causal(path, config, architectures)
    return config


def load_tokenizer(model: str | PathLike[str], *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `model`.

    Raises:
        LokiError: if the directory holds no tokenizer.
    """
    path = resolve_model(model)
    advice = "copy the base model's tokenizer files into it"
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (path / name).exists() or (path / name).is_symlink():
            value = read_json(path / name, what="tokenizer file")
            schema = TokenizerConfiguration if name == "tokenizer_config.json" else dict[str, Any]
            checked(schema, value, f"tokenizer file {path / name}", advice=advice)
    with reading("the tokenizer of model directory", path, advice=advice):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer.decode(tokenizer(["a", "b c"], padding=bool(tokenizer.pad_token))["input_ids"][1])  # errors of use
    # Without any file, Transformers makes some families' tokenizers out of their special tokens.
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
        raise LokiError(f"model directory {path} has no tokenizer: copy the base model's tokenizer files into it")
    return tokenizer


def load_model(
    model: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, read from safetensors only.

    Args:
        model: local directory or hub id.
        dtype: `auto` (the type the checkpoint was saved in), a name in `DTYPES`, or a torch dtype.
        device: where to put it; ignored with `device_map`.
        device_map: passed to Transformers; `auto` spreads the model over all devices.
        trust_remote_code: run Python code that the model directory brings along.
        config: what `load_config` gave for this directory; None reads it now.

    Raises:
        LokiError: for anything that `load_config` refuses, and for missing or truncated weights.
    """
    path = resolve_model(model)
    config = config or load_config(path, trust_remote_code=trust_remote_code)
    check_weights(path)
    torch_dtype = (pick_dtype(dtype) or "auto") if isinstance(dtype, str) else dtype
    loaded = load_weights(
        auto_class(config),
        path,
        config=config,  # Transformers copies it before it notes things there
        dtype=torch_dtype,
        device_map=device_map,
        trust_remote_code=own_code(config, trust_remote_code),
    )
    model_at_work = loaded.eval() if device_map else loaded.to(device).eval()
    check_forward(model_at_work, path)
    return model_at_work


def check_forward(model: PreTrainedModel, path: Path) -> None:
    """Compute two tokens: a configuration that contradicts itself shows only now, as an error of any kind.

    Args:
        model: just loaded.
        path: its directory, for the message.

    Raises:
        LokiError: if the model cannot compute.
    """
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    advice = "correct its config.json, or fetch or save the model again"
    with reading("the model in", path, advice=advice), torch.no_grad():
        model(input_ids=tokens, use_cache=False)


def load_weights(model_class: Any, path: Path, **options: Any) -> PreTrainedModel:
    """`model_class.from_pretrained(path, **options)` from safetensors, with every tensor really read from there.

    Raises:
        LokiError: if the weights cannot be read, or one is missing or of another shape.
    """
    advice = "fetch or save the model again"
    check_generation_config(path)
    with reading("the weights in", path, advice=advice), _without_reports_of_missing_weights():
        loaded, info = model_class.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    refuse_missing_weights(info, path)
    model: PreTrainedModel = loaded
    return model


def check_generation_config(path: Path) -> GenerationFields:
    """Check the generation_config.json of a model directory, which may be absent.

    Returns:
        What it says.

    Raises:
        LokiError: names the field that is wrong.
    """
    file = path / "generation_config.json"
    if not file.exists() and not file.is_symlink():
        return GenerationFields()
    value = read_json(file, what="generation configuration")
    return checked(
        GenerationFields, value, f"generation configuration {file}", advice="correct it, or fetch the model again"
    )


def refuse_missing_weights(loading_info: Mapping[str, Any], path: Path, shown: int = 3) -> None:
    """Refuse a checkpoint that Transformers completed with random numbers.

    Args:
        loading_info: what `from_pretrained(..., output_loading_info=True)` returned beside the model. It counts no
            tensor that the model ties to one in the checkpoint.
        path: the model directory.
        shown: how many tensors to name.

    Raises:
        LokiError: if tensors are missing or of another shape.
    """
    problems = [f"{name} is missing" for name in sorted(loading_info["missing_keys"])]
    problems += [
        f"{name} is {list(found)} instead of {list(wanted)}"
        for name, found, wanted in sorted(loading_info["mismatched_keys"])
    ]
    if problems:
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        raise LokiError(
            f"the weights in {path} do not fit its config.json ({'; '.join(problems[:shown])}{more}): "
            "fetch or save the model again"
        )


def pick_dtype(dtype: str) -> torch.dtype | None:
    """The torch dtype of a name in `DTYPES`; None for `auto`, the type the checkpoint was saved in.

    Raises:
        LokiError: if the name means no dtype.
    """
    if dtype not in DTYPES:
        raise LokiError(f"--dtype {dtype} is not known: use {', '.join(DTYPES)}")
    return DTYPES[dtype]


@contextmanager
def _without_reports_of_missing_weights() -> Iterator[None]:
    """Keep Transformers from printing a table of what `refuse_missing_weights` says in one line."""

    def other(record: logging.LogRecord) -> bool:
        return not any(word in record.getMessage() for word in ("MISSING", "MISMATCH"))

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _check_causal(path: Path, config: PretrainedConfig, architectures: list[str]) -> None:
    brings_code = hasattr(config, "auto_map") and not config.model_type.startswith(LOKI_MODEL_TYPE_PREFIX)
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder model"
    elif class_of_type(base_model_type(config.model_type)) is None and not brings_code:
        kind = "no causal language model"
    elif architectures and not any(word in name for name in architectures for word in _GENERATES):
        kind = f"a {architectures[0]}, no causal language model"
    else:
        return
    raise LokiError(f"model {path} ({config.model_type}) is {kind}: LoKI works on decoder-only causal language models")
