"""Turning a LoKI adapter into a plain LoRA adapter, which any PEFT installation or server loads without LoKI."""

from pathlib import Path

import torch
from peft import LoraConfig

from loki.errors import LokiError
from loki.files import protect_inputs
from loki.implanting.peft.adapter_files import KEY_PREFIX, LayerDelta, read_adapter, write_adapter
from loki.models.experts import Experts
from loki.models.model_directory import models_read


def export_lora(adapter: Path, output: Path, *, full_rows: bool = False, overwrite: bool = False) -> int:
    """Write a LoKI adapter as a LoRA adapter with the same outputs.

    A delta of rank `r` is LoRA on the same projections whose `lora_B` is zero outside the selected rows. Full rows
    become LoRA of rank `k`: `lora_A` holds the rows, `lora_B` puts each into its place with a single 1 per column, so
    the product is exact. Where layers have different numbers of rows, the smaller ones are padded with zeros, because
    servers want one rank for all layers.

    Args:
        adapter: directory of a LoKI adapter.
        output: directory to write.
        full_rows: allow adapters without a rank.
        overwrite: replace a directory that exists.

    Returns:
        The rank of the LoRA adapter.

    Raises:
        LokiError: if `adapter` is not a LoKI adapter, holds rows of all experts, has no rank and `full_rows` is False,
            or `output` exists.
    """
    protect_inputs(output, *models_read(adapter))
    saved = read_adapter(adapter)
    config = saved.config
    if config.experts == Experts.ALL:
        raise LokiError(
            f"adapter {adapter} holds rows of all experts, which LoRA has no common form for: make an ordinary model "
            "of it with `loki restore`"
        )
    if config.rank is None and not full_rows:
        raise LokiError(
            f"adapter {adapter} holds full rows and no rank: pass --full-rows to export it as LoRA of rank "
            f"{max(len(layer.rows) for layer in saved.adapted)}, one per row"
        )
    if config.rows_per_layer is None:
        raise LokiError(f"adapter {adapter} does not say how many rows its base has: save it from a PEFT model")
    rank = config.rank or max(len(layer.rows) for layer in saved.adapted)
    tensors = {}
    for layer in saved.adapted:
        down, up = _factors(layer, rank, config.rows_per_layer)
        tensors[f"{KEY_PREFIX}{layer.module}.lora_A.weight"] = down
        tensors[f"{KEY_PREFIX}{layer.module}.lora_B.weight"] = up
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[layer.module for layer in saved.adapted],
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
    )
    # LoraConfig makes it a set, which is saved in another order every time.
    lora.target_modules = [layer.module for layer in saved.adapted]
    write_adapter(output, lora, config, tensors, overwrite=overwrite)
    return rank


def _factors(layer: LayerDelta, rank: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`lora_A` `[rank, d_ff]` and `lora_B` `[hidden, rank]` whose product is the layer's delta."""
    if "loki_A" not in layer.tensors:
        delta = layer.matrix
        down = delta.new_zeros(rank, delta.shape[1])
        down[: len(delta)] = delta
        up = delta.new_zeros(hidden, rank)
        up[layer.rows, range(len(delta))] = 1
        return down, up
    up = layer.tensors["loki_B"].new_zeros(hidden, rank)
    up[layer.rows] = layer.tensors["loki_B"]
    return layer.tensors["loki_A"], up
