"""A LoKI adapter that changes nothing yet, for trainers that start from a saved adapter."""

from itertools import chain
from pathlib import Path

import torch
from peft import get_peft_model, get_peft_model_state_dict

from loki.artefacts.positions import Positions
from loki.files import protect_inputs
from loki.implanting.directions import check_measured_on
from loki.implanting.peft.adapter_files import KEY_PREFIX, write_adapter
from loki.implanting.peft.base_parts import parts_of_directory
from loki.implanting.peft.base_weight import Selected, base_fingerprint, rows_of_weight
from loki.implanting.peft.config import LoKIConfig
from loki.implanting.peft.layer import initialise_rank_reduction
from loki.implanting.peft.projections import Projection, find_projections, weights_of
from loki.models.checkpoint import PLAIN_DTYPES
from loki.models.classes import skeleton
from loki.models.model_directory import AnyModel, ModelDirectory


def save_zero_adapter(
    model: AnyModel,
    positions: Positions | Path,
    output: Path,
    *,
    rank: int | None = None,
    moments: Path | None = None,
    protect: float | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    experts: str | None = None,
) -> LoKIConfig:
    """Save an adapter whose delta is zero, without loading the model.

    With a rank, `loki_A` is drawn from PyTorch's default generator and `loki_B` is zero, as at the start of training.

    Args:
        model: directory or hub id of the base model.
        positions: the rows to train, or the path of a positions file.
        output: directory to write.
        rank: as in `LoKIConfig`.
        moments: file of second moments of the model's inputs, for `protect`.
        protect: as in `LoKIConfig`.
        overwrite: replace a directory that exists.
        trust_remote_code: run Python code that the model brings along.
        experts: as in `LoKIConfig`.

    Returns:
        The adapter's configuration.

    Raises:
        LokiError: if the positions do not fit the model, the model cannot be read, or `output` exists.
    """
    protect_inputs(output, model, positions if isinstance(positions, Path) else None, moments)
    base = ModelDirectory.of(model, trust_remote_code=trust_remote_code, experts=experts)
    config = LoKIConfig(positions=positions, rank=rank, moments=moments, protect=protect, experts=base.experts)
    if moments is not None:
        check_measured_on(moments, base.fingerprint)
    base.rows_for(config.row_lists)
    unloaded = skeleton(base.config, trust_remote_code=base.trust_remote_code)
    projections = find_projections(unloaded, config)
    adapted = get_peft_model(unloaded, config, low_cpu_mem_usage=True)
    config.base_model_name_or_path = base.reference
    config.base_parts = parts_of_directory(base, weights_of(projections)) or None
    if (selected := _selected(base, config, projections)) is not None:
        config.base_fingerprint = base_fingerprint(selected)
        config.base_values = base_fingerprint(selected, exact=True)
    tensors = {}
    # Else PEFT would look for the base model's configuration, on the hub too.
    for name, weight in get_peft_model_state_dict(adapted, save_embedding_layers=False).items():
        tensors[name] = torch.zeros(weight.shape)
        if name.endswith(".loki_A.weight"):
            initialise_rank_reduction(tensors[name])
    for layer, found in enumerate(projections):
        if layer in config.found_directions:
            tensors[f"{KEY_PREFIX}{found[0].name}.loki_U.weight"] = config.found_directions[layer]
    write_adapter(output, config, config, tensors, overwrite=overwrite)
    return config


def _selected(base: ModelDirectory, config: LoKIConfig, projections: list[list[Projection]]) -> Selected | None:
    checkpoint, weights = base.checkpoint, set(weights_of(projections))
    stored = [[tensor for tensor in layer if tensor.parameter in weights] for layer in base.row_tensors]
    every = list(chain.from_iterable(stored))
    # A base of other tensors is recognised only once it is loaded. Quantised weights cannot be read.
    if not all(tensor.name in checkpoint and checkpoint.dtype(tensor.name) in PLAIN_DTYPES for tensor in every):
        return None
    checkpoint.check_shapes(every)
    layers = enumerate(zip(config.row_lists, stored, strict=True))
    return [
        part
        for layer, (rows, tensors) in layers
        for one in tensors
        for part in rows_of_weight(layer, rows, checkpoint.tensor(one.name), one.axis, expert=one.part)
    ]
