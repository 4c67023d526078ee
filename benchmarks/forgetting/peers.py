"""Other ways of fine-tuning that are compared with, as PEFT has them."""

from collections.abc import Callable
from typing import Any

import peft
import torch
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import nn
from transformers import PreTrainedModel

_MLP = ["gate_proj", "up_proj", "down_proj"]
_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", *_MLP]


def _lora(**options: Any) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **options})


# None of these names is needed before it is used, so an older PEFT without one of them still runs the others.
PEERS: dict[str, Callable[[], Any]] = {
    "lora": _lora(),
    "lora-mlp": _lora(target_modules=_MLP),
    "dora": _lora(use_dora=True),
    "rslora": _lora(use_rslora=True),
    "pissa": _lora(init_lora_weights="pissa"),
    "corda": _lora(target_modules=_LINEAR, init_lora_weights="corda", corda_config=CordaConfig(corda_method="kpm")),
    "osf": lambda: peft.OSFConfig(target_modules=_MLP, effective_rank=0.5),
    "oft": lambda: peft.OFTConfig(target_modules=_MLP, oft_block_size=32, use_cayley_neumann=True),
    "shira": lambda: peft.ShiraConfig(target_modules=_MLP, r=8, mask_type="random"),
    "miss": lambda: peft.MissConfig(target_modules=_MLP, r=8),
}


def with_peer(model: PreTrainedModel, name: str, seed: int, calibration: torch.Tensor | None = None) -> nn.Module:
    """The model with an adapter of this name, freshly initialised.

    Args:
        model: the base; it is changed.
        name: a key of `PEERS`.
        seed: of masks that are drawn; everything else is drawn from PyTorch's generator.
        calibration: token ids `[N, T]` of general text, for `corda`: its knowledge-preserved mode trains the directions
            in which the inputs that such text gives matter least.
    """
    config = PEERS[name]()
    config.task_type = "CAUSAL_LM"
    if hasattr(config, "random_seed"):
        config.random_seed = seed
    if name == "corda":
        assert calibration is not None, "corda needs keep_text"
        preprocess_corda(model, config, run_model=lambda: _run(model, calibration))
    adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted


@torch.no_grad()
def _run(model: PreTrainedModel, windows: torch.Tensor) -> None:
    for window in windows:
        model(input_ids=window[None].to(model.device), use_cache=False)
