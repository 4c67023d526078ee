"""The published project's path of the Llama classes; here they are in `loki.implanting.modeling`."""

from loki.implanting.modeling import loki_classes

__all__ = ["LoKILlamaConfig", "LoKILlamaForCausalLM"]

LoKILlamaConfig, LoKILlamaForCausalLM = loki_classes("llama")
