# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


_BLOCK = 2048  # at most so many inputs are looked at together


@torch.no_grad()
def measure_second_moments(
    model: nn.Module, target_modules: Iterable[str], batches: Iterable[Mapping[str, Any]], path: str
) -> int:
    """
    Measure which input directions of the target modules a model uses, for [`LokiConfig`]'s `protect`.

    Args:
        model: The base model.
        target_modules: Names of the target modules, as in the configuration.
        batches: Keyword arguments of the model, with `attention_mask` where it is padded: text on which the model should
            stay as it is.
        path: The safetensors file to write, with `second_moment.n` for the n-th target module: the mean over tokens of
            `h h^T`, for each block of neighbouring inputs.

    Returns:
        `int`: The number of tokens.
    """
    endings = tuple(target_modules)
    targets = [
        module
        for name, module in model.named_modules()
        if name in endings or name.endswith(tuple(f".{e}" for e in endings))
    ]
    if not targets:
        raise ValueError(f"No module of the model matches target_modules={list(endings)}.")
    sums: dict[int, torch.Tensor] = {}
    mask: torch.Tensor | None = None
    tokens = 0

    def add(number: int):
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            h = inputs[0] if mask is None else inputs[0][mask.bool()]
            h = h.reshape(-1, h.shape[-1]).float()
            by_block = h.view(len(h), -1, _block_size(h.shape[-1])).transpose(0, 1)
            product = by_block.transpose(1, 2) @ by_block
            sums[number] = product if number not in sums else sums[number] + product

        return hook

    hooks = [module.register_forward_pre_hook(add(number)) for number, module in enumerate(targets)]
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            model(**batch)
            tokens += int(batch["input_ids"].numel() if mask is None else mask.sum())
    finally:
        for hook in hooks:
            hook.remove()
    save_file({f"second_moment.{number}": (total / tokens).cpu() for number, total in sums.items()}, path)
    return tokens


def least_used_directions(path: str, number: int, protect: float) -> torch.Tensor:
    """Eigenvectors of the smallest eigenvalues of each block, `[blocks, n, r]`.

    Args:
        path: The file that `measure_second_moments` wrote.
        number: Which target module.
        protect: The share of directions that is left out, those that are used most.
    """
    with torch.device("cpu"), safe_open(path, framework="pt") as file:
        moment = file.get_tensor(f"second_moment.{number}")
    size = moment.shape[-1]
    count = size - round(protect * size)
    if count == 0:
        raise ValueError(f"A `protect` of {protect} leaves none of {size} input directions to train.")
    # Eigenvalues come in ascending order.
    return torch.linalg.eigh(moment.double()).eigenvectors[..., :count].float().contiguous()


def _block_size(width: int) -> int:
    """The largest divisor that is no larger than a block."""
    return next(size for size in range(min(width, _BLOCK), 0, -1) if width % size == 0)
