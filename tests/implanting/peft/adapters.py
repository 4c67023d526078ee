"""Small LoKI adapters on tiny models, with random deltas."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from loki.artefacts.positions import Positions
from loki.implanting.peft import LoKIConfig
from tests.tiny_models import tiny_model

POSITIONS: Positions = [[1, 3], [], [0, 7, 31]]  # of 3 layers of 32 rows
D_FF = 48
RANKS = [None, 2]


def random_deltas(model: torch.nn.Module, seed: int = 0, adapter: str = "default") -> None:
    """Give one adapter's weights random values of the size of the base's."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".loki_" in name and f".{adapter}." in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)


def adapted_model(
    base: PreTrainedModel | None = None, positions: Positions = POSITIONS, rank: int | None = None, seed: int = 0
) -> PeftModel:
    """A model with one adapter that changes its output."""
    model = get_peft_model(base or tiny_model(), LoKIConfig(positions=positions, rank=rank))
    random_deltas(model, seed)
    return model.eval()


def save_adapter(directory: Path, positions: Positions = POSITIONS, rank: int | None = None, seed: int = 0) -> Path:
    """Save the adapter of `adapted_model`."""
    adapted_model(positions=positions, rank=rank, seed=seed).save_pretrained(directory)
    return directory


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits of two fixed prompts."""
    prompts = torch.arange(2 * 9).reshape(2, 9) * 17 % 320
    return model(prompts).logits
