"""The published project's path of the Llama class that attributes itself; here it is `loki.kva.published`."""

from loki.kva.published import KVALlamaForCausalLM

__all__ = ["KVALlamaForCausalLM"]
