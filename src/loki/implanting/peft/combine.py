"""Combining adapters of a model in memory: their weighted sum as a new adapter."""

from dataclasses import replace

import torch
from peft.tuners.tuners_utils import BaseTuner

from loki.errors import LokiError
from loki.implanting.peft.layer import RowAdapter, adapter_weight


def add_weighted_rows(tuner: BaseTuner, adapters: list[str], weights: list[float], adapter_name: str) -> None:
    """See `LoKIModel.add_weighted_adapter`."""
    if adapter_name in tuner.peft_config:
        raise LokiError(f"adapter {adapter_name} exists already: choose another name for the combination")
    if not adapters or len(adapters) != len(weights):
        raise LokiError(f"{len(adapters)} adapters and {len(weights)} weights: give one weight per adapter")
    for name in adapters:
        if name not in tuner.peft_config:
            raise LokiError(f"adapter {name} does not exist: the model has {', '.join(tuner.peft_config)}")
    parts = [tuner.peft_config[name].row_lists for name in adapters]
    union = [sorted(set().union(*lists)) for lists in zip(*parts, strict=True)]
    tuner.peft_config[adapter_name] = replace(
        tuner.peft_config[adapters[0]], positions=union, rank=None, base_fingerprint=None
    )
    tuner.inject_adapter(tuner.model, adapter_name)
    for module in tuner.model.modules():
        if isinstance(module, RowAdapter) and adapter_name in module.loki_rows:
            _fill(module, adapter_name, list(zip(adapters, weights, strict=True)))


def _fill(module: RowAdapter, adapter_name: str, factors: list[tuple[str, float]]) -> None:
    rows = module.loki_rows[adapter_name]
    weight = adapter_weight(module.loki_delta, adapter_name)
    total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    for name, factor in factors:
        if name in module.loki_rows:
            places = torch.searchsorted(rows, module.loki_rows[name].to(rows.device)).to(weight.device)
            total.index_add_(0, places, factor * module.delta_rows(name).to(weight.device))
    weight.copy_(total)
