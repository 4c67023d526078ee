"""Knowledge Vector Attribution: how much every row of every `down_proj.weight` matters for what the model says."""

from loki.kva.auto import Attribution, Attributor, make_attributor
from loki.kva.published import KVALlamaForCausalLM, KVAQwenForCausalLM
from loki.kva.settings import AttributionSettings

__all__ = [
    "Attribution",
    "AttributionSettings",
    "Attributor",
    "KVALlamaForCausalLM",
    "KVAQwenForCausalLM",
    "make_attributor",
]
