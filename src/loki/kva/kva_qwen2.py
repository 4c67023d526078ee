"""The published project's path of the Qwen2 class that attributes itself; here it is `loki.kva.published`."""

from loki.kva.published import KVAQwenForCausalLM

__all__ = ["KVAQwenForCausalLM"]
