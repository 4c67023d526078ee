"""The model shapes that KVA is measured on."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

COUNTS = (1, 4, 16)  # prompts that go through the engine together, in the test of cost per prompt


@dataclass(frozen=True)
class Shape:
    """A model shape, the length of its prompt, where it runs, and what is aimed at.

    Attributes:
        config: of the model.
        tokens: of a prompt.
        device: where it runs.
        dtype: type that it computes in.
        speedup: how many times as fast as Captum `captum` should be, at least.
        seconds: per prompt at most, under `captum` and `paper`; None: not aimed at.
        gap: relative error at most.
        captum_counts: numbers of prompts that go through the engine together under `captum`; where one takes minutes,
            one has to do.
        analysed: prompts of a whole analysis, under `captum` and `paper`: enough for its start not to count.
    """

    config: PretrainedConfig
    tokens: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    speedup: float = 5.0
    seconds: tuple[float, float] | None = None
    gap: float = 1e-5
    captum_counts: tuple[int, ...] = COUNTS
    analysed: tuple[int, int] = (4, 64)

    def model(self) -> PreTrainedModel:
        """A model of this shape with random weights, made on its device."""
        torch.manual_seed(0)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(self.config, dtype=self.dtype).eval()

    def counts(self, definition: str) -> tuple[int, ...]:
        """Numbers of prompts that go through the engine together."""
        return self.captum_counts if definition == "captum" else COUNTS

    def prompts(self, count: int) -> list[list[int]]:
        """Random prompts."""
        return torch.randint(1, self.config.vocab_size, (count, self.tokens)).tolist()


SHAPES = {
    "llama-12x512": Shape(
        LlamaConfig(
            num_hidden_layers=12, hidden_size=512, intermediate_size=1408, num_attention_heads=8, vocab_size=8000
        ),
        tokens=128,
        speedup=4.5,
    ),
    "qwen2.5-0.5b": Shape(
        Qwen2Config(
            num_hidden_layers=24,
            hidden_size=896,
            intermediate_size=4864,
            num_attention_heads=14,
            num_key_value_heads=2,
            vocab_size=32000,
            tie_word_embeddings=True,
        ),
        tokens=150,
        captum_counts=(1,),
        analysed=(1, 4),
    ),
    "llama-3.1-8b": Shape(
        LlamaConfig(
            num_hidden_layers=32,
            hidden_size=4096,
            intermediate_size=14336,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
        ),
        tokens=150,
        device="cuda",
        dtype=torch.bfloat16,
        seconds=(1.2, 0.04),
        gap=0.1,
    ),
}

QUICK_SHAPES = {
    "llama-3x64": Shape(
        LlamaConfig(num_hidden_layers=3, hidden_size=64, intermediate_size=176, num_attention_heads=4, vocab_size=320),
        tokens=24,
    ),
}
