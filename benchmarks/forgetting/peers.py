"""Other ways of fine-tuning that are compared with, as PEFT has them."""

from collections.abc import Callable
from typing import Any

import peft
from torch import nn
from transformers import PreTrainedModel

_MLP = ["gate_proj", "up_proj", "down_proj"]


def _lora(**options: Any) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **options})


# None of these names is needed before it is used, so an older PEFT without one of them still runs the others.
PEERS: dict[str, Callable[[], Any]] = {
    "lora": _lora(),
    "lora-mlp": _lora(target_modules=_MLP),
    "dora": _lora(use_dora=True),
    "rslora": _lora(use_rslora=True),
    "pissa": _lora(init_lora_weights="pissa"),
    "osf": lambda: peft.OSFConfig(target_modules=_MLP, effective_rank=0.5),
    "oft": lambda: peft.OFTConfig(target_modules=_MLP, oft_block_size=32, use_cayley_neumann=True),
    "shira": lambda: peft.ShiraConfig(target_modules=_MLP, r=8, mask_type="random"),
    "miss": lambda: peft.MissConfig(target_modules=_MLP, r=8),
}


def with_peer(model: PreTrainedModel, name: str, seed: int) -> nn.Module:
    """The model with an adapter of this name, freshly initialised.

    Args:
        model: the base; it is changed.
        name: a key of `PEERS`.
        seed: of masks that are drawn; everything else is drawn from PyTorch's generator.
    """
    config = PEERS[name]()
    config.task_type = "CAUSAL_LM"
    if hasattr(config, "random_seed"):
        config.random_seed = seed
    adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted
