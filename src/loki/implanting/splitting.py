"""Splitting a loaded model into active and frozen rows, and checking that nothing else is trainable."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from loki.artefacts.positions import Positions, check_layers_have_rows, check_positions
from loki.errors import LokiError
from loki.implanting.experts import LoKIExperts, split_experts
from loki.implanting.linear import LoKILinear
from loki.models.architectures import text_config
from loki.models.experts import linear_rows


def split_rows(model: PreTrainedModel, positions: Positions, experts: str | None = None) -> None:
    """Replace every layer's `down_proj` by a `LoKILinear` with its active rows, and freeze everything else.

    Args:
        model: a causal language model with ordinary Linears.
        positions: active rows of every layer.
        experts: which rows of a model with experts are meant; None takes what its configuration says.

    Raises:
        LokiError: if the positions do not fit the model.
    """
    layers = linear_rows(model, experts)
    positions = check_positions(positions, layers=len(layers), hidden=text_config(model.config).hidden_size)
    with_rows = [number for number, layer in enumerate(layers) if layer]
    check_layers_have_rows(positions, with_rows)
    model.requires_grad_(False)
    for layer, rows in zip(layers, positions, strict=True):
        if rows and isinstance(layer.projection, nn.Linear):
            parent, _, child = str(layer.projection_name).rpartition(".")
            setattr(model.get_submodule(parent), child, LoKILinear(layer.projection, rows))
        if rows and layer.experts is not None:
            split_experts(layer.experts, rows)
    check_trainable(model)


def loki_linears(model: nn.Module) -> dict[str, LoKILinear | LoKIExperts]:
    """Every module with active rows of a model, by qualified name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (LoKILinear, LoKIExperts))}


def active_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that hold active rows, by qualified name."""
    return {
        f"{name}.{part}": parameter
        for name, module in loki_linears(model).items()
        for part, parameter in module.named_parameters(recurse=False)
        if part.startswith("active_")
    }


def exact_rows(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the active rows are made of, by qualified name, detached: saved and put back, they are the same exactly."""
    rows = {name: parameter.detach() for name, parameter in active_parameters(model).items()}
    for name, module in loki_linears(model).items():
        base = getattr(module, "base_rows", None)
        if base is not None:
            rows[f"{name}.base_rows"] = base
    return rows


@torch.no_grad()
def put_rows(model: nn.Module, rows: Mapping[str, torch.Tensor]) -> None:
    """Put back what `exact_rows` gave, of this model or of another with the same selection."""
    for name, tensor in exact_rows(model).items():
        tensor.copy_(rows[name])


def check_trainable(model: nn.Module) -> None:
    """Check that exactly the active rows are trainable.

    Raises:
        LokiError: if an active row is frozen, or anything else is trainable.
    """
    active = {id(parameter) for parameter in active_parameters(model).values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in active:
            raise LokiError(
                f"{name} is trainable, but is no selected row: freeze it, or nothing of it will be restored"
            )
        if not parameter.requires_grad and id(parameter) in active:
            raise LokiError(f"{name} holds selected rows, but is frozen: set requires_grad on it")
    if not active:
        raise LokiError("no selected rows in this model: load a LoKI model directory (make one with `loki create`)")
