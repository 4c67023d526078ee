"""Knowledge Vector Attribution: how much every row of every `down_proj.weight` matters for what the model says.

The names below are imported when they are first used, so that the settings can be read without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loki.kva.attributor import Attribution, Attributor
    from loki.kva.auto import make_attributor
    from loki.kva.published import KVALlamaForCausalLM, KVAQwenForCausalLM
    from loki.kva.settings import AttributionSettings

_HOMES = {
    "Attribution": "loki.kva.attributor",
    "AttributionSettings": "loki.kva.settings",
    "Attributor": "loki.kva.attributor",
    "KVALlamaForCausalLM": "loki.kva.published",
    "KVAQwenForCausalLM": "loki.kva.published",
    "make_attributor": "loki.kva.auto",
}

__all__ = [
    "Attribution",
    "AttributionSettings",
    "Attributor",
    "KVALlamaForCausalLM",
    "KVAQwenForCausalLM",
    "make_attributor",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
