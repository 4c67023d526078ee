"""LoKI: Low-damage Knowledge Implanting (arXiv 2505.22120).

Importing this package registers the LoKI model classes with Transformers' Auto classes, and LoKI with PEFT.
"""

__version__ = "0.1.0"

from loki.implanting.create import create_loki_model
from loki.implanting.linear import LoKILinear
from loki.implanting.modeling import loki_classes
from loki.implanting.peft import LoKIConfig
from loki.restoring.restore import restore_loki_model
from loki.restoring.suppress import set_zero_weights

LoKILlamaConfig, LoKILlamaForCausalLM = loki_classes("llama")
LoKIQwen2Config, LoKIQwen2ForCausalLM = loki_classes("qwen2")
LoKIQwen3Config, LoKIQwen3ForCausalLM = loki_classes("qwen3")
LoKIMistralConfig, LoKIMistralForCausalLM = loki_classes("mistral")
LoKIGemma2Config, LoKIGemma2ForCausalLM = loki_classes("gemma2")
LoKIGemma3Config, LoKIGemma3ForCausalLM = loki_classes("gemma3_text")
LoKIPhi3Config, LoKIPhi3ForCausalLM = loki_classes("phi3")
# The published project's names for Qwen2 and Qwen2.5.
LoKIQwenConfig, LoKIQwenForCausalLM = LoKIQwen2Config, LoKIQwen2ForCausalLM

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
    "create_loki_model",
    "loki_classes",
    "restore_loki_model",
    "set_zero_weights",
]
