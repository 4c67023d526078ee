"""Scaling what training changed: between the base model (0) and the trained one (1).

Interpolating towards the base is a strong lever against forgetting that costs no training (WiSE-FT, arXiv 2109.01903;
PEFT-Arena, arXiv 2605.28819). Only the selected rows differ, so only they are scaled.
"""

from collections.abc import Sequence

import torch

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.models.experts import RowTensor
from loki.models.model_directory import ModelDirectory
from loki.models.rewriting import Change
from loki.models.tensor_names import names_in, selected_by_tensor


def check_scale(scale: float, *, allow_zero: bool = False) -> float:
    """Check a scale, and return it.

    Args:
        scale: factor of the rows' change.
        allow_zero: whether the base model itself may come out.

    Raises:
        LokiError: if it is not from 0 to 1, or is 0 and that is not allowed.
    """
    if scale == 0 and not allow_zero:
        raise LokiError("--scale 0 gives back the base model: use a scale above 0, or pass --allow-unchanged")
    if scale > 1:
        raise LokiError(f"--scale {scale} goes beyond what was trained, where nothing was learnt: it must be at most 1")
    if not 0 <= scale <= 1:
        raise LokiError(f"--scale {scale} is out of range: it must be from 0 (the base) to 1 (as trained)")
    return scale


def scaled(change: torch.Tensor, scale: float, base: torch.Tensor) -> torch.Tensor:
    """`base + scale * change`, added in at least float32, and rounded once to the type of `base`."""
    wide = torch.promote_types(base.dtype, torch.float32)
    return (base.to(wide) + scale * change.to(wide)).to(base.dtype)


def scale_rows(
    base: ModelDirectory,
    tensors: Sequence[Sequence[RowTensor]],
    positions: Positions,
    scale: float,
    dtype: torch.dtype | None = None,
) -> Change:
    """What to do with every tensor of a trained model so that its rows' change is scaled.

    Args:
        base: the base model, which the rows are scaled towards.
        tensors: the tensors of the trained model that hold rows, by layer.
        positions: selected rows of every layer.
        scale: factor of their change; 1 changes nothing, 0 gives the base to the last bit.
        dtype: type that the base was converted to before it was trained; None kept its own.

    Raises:
        LokiError: if the base stores its rows in other tensors.
    """
    if scale == 1:
        return lambda _, tensor: tensor
    stored, checkpoint = base.row_tensors, base.checkpoint
    names = names_in(stored, tensors)
    if names is None:
        raise LokiError(
            f"{base.path} stores its experts in other tensors than the trained model, so --scale cannot compare them: "
            "load the base with Transformers, save it again, and name that with --base"
        )
    here, there = selected_by_tensor(tensors, positions), selected_by_tensor(stored, positions)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if (rows := here.get(name)) is not None:
            before = checkpoint.tensor(names[name])[there[names[name]]]
            before = before.to(dtype or before.dtype)
            wide = torch.promote_types(tensor.dtype, torch.promote_types(before.dtype, torch.float32))
            tensor[rows] = scaled(tensor[rows].to(wide) - before.to(wide), scale, before.to(wide)).to(tensor.dtype)
        return tensor

    return change
