"""The paper's suppression ablation: what a model still knows when the selected rows are zero."""

from pathlib import Path

import torch

from loki.artefacts.positions import read_positions
from loki.files import atomic_directory, protect_inputs, refuse_existing
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.models.rewriting import rewrite_weights
from loki.models.side_files import copy_side_files
from loki.models.tensor_names import selected_by_tensor


def set_zero_weights(
    model_path: AnyModel,
    target_pos_path: str | Path,
    save_dir: str | Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    experts: str | None = None,
) -> Path:
    """Save an ordinary model in which the selected rows of every `down_proj.weight`, and of its bias, are zero.

    The paper's suppression ablation (arXiv 2505.22120, section 4).

    Args:
        model_path: the model, a local directory or hub id.
        target_pos_path: positions file.
        save_dir: where to write; it appears when it is complete.
        overwrite: replace what stands at `save_dir`.
        trust_remote_code: run Python code that the model brings along.
        experts: which rows are meant where the model has experts, see `loki.models.experts.Experts`.

    Returns:
        `save_dir`.

    Raises:
        LokiError: if the model or the positions cannot be read or do not fit together, or `save_dir` exists
            or is one of them.
    """
    target = Path(save_dir)
    refuse_existing(target, overwrite=overwrite)
    protect_inputs(target, model_path, target_pos_path)
    source = ModelDirectory.of(model_path, trust_remote_code=trust_remote_code, experts=experts)
    positions = read_positions(Path(target_pos_path))
    zeroed = selected_by_tensor(source.editable_rows(positions, origin=f"positions file {target_pos_path}"), positions)

    def zero(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if (rows := zeroed.get(name)) is not None:
            tensor[rows] = 0
        return tensor

    with atomic_directory(target, overwrite=overwrite) as temporary:
        rewrite_weights(source.path, temporary, zero)
        copy_side_files(source.path, temporary)
        source.config.save_pretrained(temporary)
    return target
