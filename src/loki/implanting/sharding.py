"""Weights that several processes hold in parts, as FSDP2 and DeepSpeed ZeRO-3 spread them."""

from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from loki.errors import LokiError

ACTIVE = "active_"

_ZERO_3 = (
    "DeepSpeed ZeRO-3 spreads the weights that LoKI splits into rows: use ZeRO-2 (zero_stage: 2), which shards the "
    "gradients and the optimiser, or FSDP2, which shards the weights too"
)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process holds a part of the tensor only."""
    return isinstance(tensor, DTensor)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the parts of all processes, detached. Where it is sharded, every process must call this."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def shard_like(tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """`tensor`, of which every process has all of it, sharded as `pattern` is; itself where that is not sharded."""
    if not isinstance(pattern, DTensor):
        return tensor
    # Without a source rank nothing is sent.
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def under_fsdp() -> bool:
    """Whether the launcher, or a trainer's arguments, have FSDP on.

    Transformers' own `is_fsdp_enabled` says so only where rank 0 loads the weights for all.
    """
    return _launched_with("FSDP")


def under_deepspeed() -> bool:
    """Whether they have DeepSpeed on."""
    return _launched_with("DEEPSPEED")


def _launched_with(name: str) -> bool:
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return joined and parse_flag_from_env(f"ACCELERATE_USE_{name}")


def rows_are_kept_apart(weight: torch.Tensor) -> bool:
    """Whether a state dict holds the active rows beside the weight, not in it.

    Putting them into a sharded weight would take every process. FSDP with loading on rank 0 compares state dicts from
    before and after sharding, which must have the same names.
    """
    return is_sharded(weight) or bool(is_fsdp_enabled())


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state dict of a sharded model: whole on rank 0, empty elsewhere. Every process must call this."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def refuse_zero_3() -> None:
    """Refuse DeepSpeed ZeRO-3, if it is on.

    Raises:
        LokiError: if it is.
    """
    if is_deepspeed_zero3_enabled():
        raise LokiError(_ZERO_3)
