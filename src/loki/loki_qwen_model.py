"""The published project's path of the Qwen2 classes; here they are in `loki.implanting.modeling`."""

from loki.implanting.modeling import LoKIQwenConfig, LoKIQwenForCausalLM

__all__ = ["LoKIQwenConfig", "LoKIQwenForCausalLM"]
