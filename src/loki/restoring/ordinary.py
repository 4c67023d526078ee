"""The configuration of an ordinary model, from that of a LoKI model."""

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from loki.errors import LokiError
from loki.inputs import checked, read_json, reading
from loki.models.architectures import base_model_type
from loki.models.config_schema import ModelConfiguration

_LOKI_KEYS = (
    "auto_map",
    "target_pos",
    "base_model_name_or_path",
    "base_fingerprint",
    "base_rows_fingerprint",
    "base_dtype",
    "protect",
    "directions_digest",
    "experts",
    "loki_version",
)


def ordinary_config(config: PretrainedConfig, base: Path | None = None) -> PretrainedConfig:
    """The configuration of the ordinary model that a LoKI model is restored to.

    Args:
        config: configuration of a LoKI model.
        base: directory of its base model, where it is at hand.

    Raises:
        LokiError: if the family refuses the configuration.
    """
    base_class: Any = next(cls for cls in type(config).__mro__ if cls.__module__.startswith("transformers."))
    values: dict[str, Any] = {key: value for key, value in config.to_dict().items() if key not in _LOKI_KEYS}
    values["model_type"] = base_model_type(config.model_type)
    values["architectures"] = [name.removeprefix("LoKI") for name in config.architectures or []]
    if "use_cache" in values:
        values["use_cache"] = _uses_cache(config, base)
    if config.base_dtype:
        values["dtype"] = config.base_dtype
    with reading("model configuration", config.name_or_path or config.model_type, advice="save the model again"):
        ordinary: PretrainedConfig = base_class.from_dict(json.loads(json.dumps(values, default=str)))
    return ordinary


def _uses_cache(config: PretrainedConfig, base: Path | None) -> bool:
    """What the base says, where it is at hand; trainers turn the cache off and save that."""
    directory = base or Path(str(config.base_model_name_or_path))
    try:
        found = read_json(directory / "config.json", what="configuration")
        return checked(ModelConfiguration, found, f"configuration of {directory}").use_cache is not False
    except LokiError:
        return True
