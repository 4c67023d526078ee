"""The PEFT tuner: finds the projections, checks that the adapter fits them, and wraps them."""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from loki.artefacts.positions import check_layers_have_rows, check_positions_fit
from loki.errors import LokiError
from loki.implanting.directions import digest, least_used_directions
from loki.implanting.experts import by_expert
from loki.implanting.peft.base_parts import base_parts
from loki.implanting.peft.base_weight import base_fingerprint, same_base
from loki.implanting.peft.config import LoKIConfig
from loki.implanting.peft.experts import ExpertsAdapter
from loki.implanting.peft.layer import InputDirections, RowAdapter, adapter_weight
from loki.implanting.peft.projections import Projection, find_projections, selected_rows, weights_of
from loki.implanting.sharding import refuse_zero_3


class LoKIModel(BaseTuner):  # type: ignore[misc]
    """A model with LoKI adapters; made by `peft.get_peft_model` and `PeftModel.from_pretrained`."""

    prefix = "loki_"
    tuner_layer_cls = RowAdapter
    active_adapters: list[str]
    # PEFT would look up module names by model type here; `_prepare_adapter_config` finds them by structure.
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def _prepare_adapter_config(self, peft_config: LoKIConfig, model_config: dict[str, Any]) -> LoKIConfig:
        del model_config
        refuse_zero_3()
        projections = find_projections(self.model, peft_config)
        check_adapter_fits(peft_config, projections)
        peft_config.found_parts = base_parts(self.model.named_parameters(), weights_of(projections))
        layers = zip(projections, peft_config.row_lists, _directions(peft_config, projections), strict=True)
        found = [(one, rows, directions) for layer, rows, directions in layers for one in layer]
        self._projections = {one.name: one for one, _, _ in found}
        self._rows_by_module = {one.name: rows for one, rows, _ in found}
        self._directions_by_module = {one.name: directions for one, _, directions in found}
        return peft_config

    def _check_target_module_exists(self, peft_config: LoKIConfig, key: str) -> bool:
        del peft_config
        return bool(self._rows_by_module.get(key))

    def _create_and_replace(
        self,
        peft_config: LoKIConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        del parameter_name
        adapter = self._projections[current_key].adapter()
        if adapter is not target:
            adapter.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)
        adapter.update_layer(
            adapter_name,
            self._rows_by_module[current_key],
            peft_config.rank,
            self._directions_by_module[current_key],
            inference_mode=peft_config.inference_mode,
        )
        if adapter is not target:
            self._replace_module(parent, target_name, adapter, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, ExpertsAdapter):  # unloaded: PEFT would look for a weight of another name in it
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], adapter_name: str) -> None:
        """Add an adapter that is a weighted sum of others; it holds full rows, the union of theirs.

        Args:
            adapters: names of the adapters to combine.
            weights: their factors, of either sign.
            adapter_name: name of the new adapter. It is frozen and not active until `set_adapter`.

        Raises:
            LokiError: if an adapter does not exist, the new name is taken, or the numbers of names and weights differ.
        """
        if adapter_name in self.peft_config:
            raise LokiError(f"adapter {adapter_name} exists already: choose another name for the combination")
        if not adapters or len(adapters) != len(weights):
            raise LokiError(f"{len(adapters)} adapters and {len(weights)} weights: give one weight per adapter")
        for name in adapters:
            if name not in self.peft_config:
                raise LokiError(f"adapter {name} does not exist: the model has {', '.join(self.peft_config)}")
        parts = [self.peft_config[name].row_lists for name in adapters]
        union = [sorted(set().union(*lists)) for lists in zip(*parts, strict=True)]
        self.peft_config[adapter_name] = self.peft_config[adapters[0]].with_full_rows(union)
        self.inject_adapter(self.model, adapter_name)
        for module in self.model.modules():
            if isinstance(module, RowAdapter) and adapter_name in module.loki_rows:
                _fill(module, adapter_name, list(zip(adapters, weights, strict=True)))


def _fill(module: RowAdapter, adapter_name: str, factors: list[tuple[str, float]]) -> None:
    """Set an adapter's full rows to the weighted sum of others' rows."""
    rows = module.loki_rows[adapter_name]
    weight = adapter_weight(module.loki_delta, adapter_name)
    total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    for name, factor in factors:
        if name in module.loki_rows:
            places = torch.searchsorted(rows, module.loki_rows[name].to(rows.device)).to(weight.device)
            part = factor * module.delta_rows(name).to(weight.device)
            by_expert(total, module.experts).index_add_(1, places, by_expert(part, module.experts))
    weight.copy_(total)


def _directions(config: LoKIConfig, projections: list[list[Projection]]) -> list[InputDirections | None]:
    """The input directions of every projection; to be read with the adapter's weights where it was saved with them."""
    if config.protect is None:
        return [None] * len(projections)
    widths = [layer[0].shape[1] if layer else 0 for layer in projections]
    if config.moments is not None:
        found = least_used_directions(Path(config.moments), config.protect, config.row_lists, widths=widths)
        shapes = sorted({tuple(directions.shape) for directions in found.values()})
        if len(shapes) > 1:
            raise LokiError(
                f"protect: the layers differ in their number of inputs ({sorted({*widths} - {0})}), which one adapter "
                "cannot hold directions of: leave protect out, or make a LoKI model (`loki create`)"
            )
        config.found_directions = found
        config.directions_shape = list(shapes[0])
        made = [InputDirections(found[layer]) if layer in found else None for layer in range(len(projections))]
        config.directions_digests = [digest({0: one.weight}) if one else None for one in made]
        return made
    if config.directions_shape is None:
        raise LokiError("LoKIConfig: protect needs moments: give the file that `loki moments` wrote")
    unknown = torch.full(config.directions_shape, torch.nan)
    # Other programs that save adapters of this form write no hashes.
    digests = config.directions_digests or [None] * len(config.row_lists)
    return [
        InputDirections(unknown.clone(), known) if rows else None
        for rows, known in zip(config.row_lists, digests, strict=True)
    ]


def check_adapter_fits(config: LoKIConfig, projections: list[list[Projection]]) -> None:
    """Check positions and fingerprint against the base model, and note what the base has in the configuration.

    Raises:
        LokiError: if the numbers of layers or rows differ, or the adapter was made for other weights.
    """
    with_rows = [layer for layer, found in enumerate(projections) if found]
    hidden = min(one.shape[0] for found in projections for one in found)
    check_positions_fit(config.row_lists, layers=len(projections), hidden=hidden)
    check_layers_have_rows(config.row_lists, with_rows)
    if config.rows_per_layer not in (None, hidden):
        raise LokiError(
            f"the adapter is for {config.rows_per_layer} rows per layer, but the base model has {hidden}: "
            f"load it on the base it was made for ({config.base_model_name_or_path})"
        )
    config.found_rows = hidden
    selected = selected_rows(config, projections)
    config.found_fingerprint = base_fingerprint(selected) if selected is not None else None
    config.found_values = base_fingerprint(selected, exact=True) if selected is not None else None
    found, wanted = config.found_fingerprint, config.base_fingerprint
    if found and wanted and not same_base(found, wanted):
        raise LokiError(
            f"the adapter was made for another base ({config.base_model_name_or_path}): this one has other values in "
            "the selected rows; load it on its own base"
        )
