"""LoKI: Low-damage Knowledge Implanting (arXiv 2505.22120).

Importing this package registers the LoKI model classes with Transformers' Auto classes, and LoKI with PEFT: at once
where these libraries are imported already, else as soon as they are. Until then it imports nothing heavy, so that
`loki --help` answers quickly. LlamaFactory, where that is imported, is kept from training anything else.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from loki_autoload import ADAPTER_MODULE, after_import, prepare_llamafactory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from loki.implanting.create import create_loki_model
    from loki.implanting.linear import LoKILinear
    from loki.implanting.modeling import loki_classes
    from loki.implanting.peft import LoKIConfig
    from loki.kva.attribute import attribute
    from loki.restoring.restore import restore_loki_model
    from loki.restoring.suppress import set_zero_weights

    LoKILlamaConfig: type[PretrainedConfig]
    LoKILlamaForCausalLM: type[PreTrainedModel]
    LoKIQwenConfig: type[PretrainedConfig]
    LoKIQwenForCausalLM: type[PreTrainedModel]
    LoKIQwen2Config: type[PretrainedConfig]
    LoKIQwen2ForCausalLM: type[PreTrainedModel]
    LoKIQwen3Config: type[PretrainedConfig]
    LoKIQwen3ForCausalLM: type[PreTrainedModel]
    LoKIMistralConfig: type[PretrainedConfig]
    LoKIMistralForCausalLM: type[PreTrainedModel]
    LoKIGemma2Config: type[PretrainedConfig]
    LoKIGemma2ForCausalLM: type[PreTrainedModel]
    LoKIGemma3Config: type[PretrainedConfig]
    LoKIGemma3ForCausalLM: type[PreTrainedModel]
    LoKIPhi3Config: type[PretrainedConfig]
    LoKIPhi3ForCausalLM: type[PreTrainedModel]

__version__ = "0.2.0"

_HOMES = {
    "LoKIConfig": "loki.implanting.peft",
    "LoKILinear": "loki.implanting.linear",
    "attribute": "loki.kva.attribute",
    "create_loki_model": "loki.implanting.create",
    "loki_classes": "loki.implanting.modeling",
    "restore_loki_model": "loki.restoring.restore",
    "set_zero_weights": "loki.restoring.suppress",
}
_HOME_OF_MODEL_CLASSES = "loki.implanting.modeling"

__all__ = [
    "LoKIConfig",
    "LoKIGemma2Config",
    "LoKIGemma2ForCausalLM",
    "LoKIGemma3Config",
    "LoKIGemma3ForCausalLM",
    "LoKILinear",
    "LoKILlamaConfig",
    "LoKILlamaForCausalLM",
    "LoKIMistralConfig",
    "LoKIMistralForCausalLM",
    "LoKIPhi3Config",
    "LoKIPhi3ForCausalLM",
    "LoKIQwen2Config",
    "LoKIQwen2ForCausalLM",
    "LoKIQwen3Config",
    "LoKIQwen3ForCausalLM",
    "LoKIQwenConfig",
    "LoKIQwenForCausalLM",
    "attribute",
    "create_loki_model",
    "loki_classes",
    "restore_loki_model",
    "set_zero_weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES or name.startswith("LoKI"):
        home = import_module(_HOMES.get(name, _HOME_OF_MODEL_CLASSES))
        if hasattr(home, name):
            return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_model_classes(_: ModuleType) -> None:
    import_module(_HOME_OF_MODEL_CLASSES)


def _register_peft_method(_: ModuleType) -> None:
    import_module("loki.implanting.peft")


after_import("transformers", _register_model_classes)
after_import("peft", _register_peft_method)
after_import(ADAPTER_MODULE, prepare_llamafactory)
