"""Which class a model is of: one for text alone, or one that wraps a text model with what sees or hears."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from loki.inputs import reading
from loki.models.architectures import LOKI_MODEL_TYPE_PREFIX

# Llama 4's wrapper asks its text model for what that saw of images, even where there are none, and in some releases of
# Transformers (5.24) the text model has no such thing to give: the wrapper then computes nothing at all.
if not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
    MoeCausalLMOutputWithPast.image_outputs = None


def class_of_type(model_type: str) -> str | None:
    """Name of the Transformers class that holds a whole model of this type; None if it generates no text.

    Where a type can be loaded as its text model alone as well (`qwen3_5`), this is the class of the whole.
    """
    wrapper: str | None = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)
    return wrapper or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)


def auto_class(config: PretrainedConfig) -> Any:
    """The Auto class that loads the whole model of `config`, its vision tower included where it has one."""
    wraps = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if wraps else AutoModelForCausalLM


def own_code(config: PretrainedConfig, trust_remote_code: bool) -> bool:
    """Whether code of the model's directory is to be run for its classes: those of LoKI's types are in this package."""
    return trust_remote_code and not config.model_type.startswith(LOKI_MODEL_TYPE_PREFIX)


def skeleton(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of `config` without weights, on the meta device.

    Raises:
        LokiError: if the configuration makes no model.
    """
    place = config.name_or_path or config.model_type
    advice = "correct its config.json, or fetch or save the model again"
    with reading("the configuration of model", place, advice=advice), torch.device("meta"):
        trust = own_code(config, trust_remote_code)
        model: PreTrainedModel = auto_class(config).from_config(config, trust_remote_code=trust)
    return model
