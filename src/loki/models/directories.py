"""Model directories: rewriting their weights shard by shard, and taking along everything that is no weight."""

import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PretrainedConfig

from loki.artefacts.positions import Positions
from loki.files import write_json
from loki.inputs import read_json, reading
from loki.models.architectures import down_projections
from loki.models.checkpoint import INDEX_NAME, check_weights, is_sharded
from loki.models.classes import skeleton
from loki.models.tensor_names import stored_modules

# What is no weight but is written anew, or belongs to a training rather than to the model.
_OWN_FILES = (
    "config.json",
    "modeling_loki.py",
    "run.json",
    "training*.json",
    "trainer_state.json",
    "training_loss.*",
    "trainer_log.jsonl",
    "all_results.json",
    "eval_results.json",
    "train_results.json",
)
_WEIGHT_ENDINGS = (
    ".safetensors",
    ".index.json",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".tflite",
)
_OWN_FOLDERS = ("checkpoint-*", "runs", "original", "llamafactory", "__pycache__", "onnx", "metal", ".*")

Change = Callable[[str, torch.Tensor], torch.Tensor]


def rewrite_weights(source: Path, target: Path, change: Change) -> None:
    """Write the weights of `source` to `target`, each tensor through `change`; one shard in memory at a time.

    Args:
        source: a model directory with safetensors weights.
        target: an existing directory; gets shards of the same names, and the index.
        change: from a tensor's name and value to its new value, of the same shape.

    Raises:
        LokiError: if the weights of `source` are missing or damaged.
    """
    total = 0
    for shard in check_weights(source):
        with reading("weights file", shard), safe_open(shard, framework="pt") as opened:
            metadata = opened.metadata()
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        tensors = {name: change(name, stored.pop(name)).contiguous() for name in list(stored)}
        save_file(tensors, target / shard.name, metadata=metadata or {"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
    if is_sharded(source):
        index = read_json(source / INDEX_NAME, what="weight index")
        index["metadata"] = {**(index.get("metadata") or {}), "total_size": total}
        write_json(target / INDEX_NAME, index)


def cast_floats(dtype: torch.dtype | None) -> Change:
    """A change that converts floating-point tensors to `dtype`; None keeps them as they are."""

    def cast(_: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    return cast


def copy_side_files(source: Path, target: Path) -> None:
    """Copy every file of a model directory that is neither weights nor configuration, folders included.

    Tokenizer, chat templates, processor, generation configuration, licence, notices, model card, ...; not what a
    training leaves there beside the model.
    """
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        if source.name.startswith("checkpoint-") and relative.name == "README.md":
            continue  # a trainer's, of the training
        if file.is_file() and _belongs_to_model(relative):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target / relative)


def _belongs_to_model(relative: Path) -> bool:
    own = any(fnmatch(relative.name, pattern) for pattern in _OWN_FILES) and len(relative.parts) == 1
    folders = any(fnmatch(folder, pattern) for folder in relative.parts[:-1] for pattern in _OWN_FOLDERS)
    hidden = relative.name.startswith(".")
    return not (own or folders or hidden or relative.name.endswith(_WEIGHT_ENDINGS))


def projection_names(
    config: PretrainedConfig, *, trust_remote_code: bool = False, stored: Iterable[str] | None = None
) -> list[str]:
    """Qualified names of every layer's `down_proj`, from the first layer to the last, without loading any weight.

    Args:
        config: the model's configuration.
        trust_remote_code: run Python code that the model brings along.
        stored: names of a checkpoint's tensors; if given, the names are those that the checkpoint has the weights
            under (`loki.models.tensor_names`), else those of the modules.

    Raises:
        LokiError: if the configuration makes no model, or a layer has no MLP that ends in one `nn.Linear`.
    """
    model = skeleton(config, trust_remote_code=trust_remote_code)
    names = list(down_projections(model))
    return names if stored is None else stored_modules(model, names, stored)


def selected_by_tensor(names: list[str], positions: Positions) -> dict[str, list[int]]:
    """The selected rows of every `down_proj.weight`, and their entries in its bias, by the tensor's name.

    Args:
        names: qualified name of every layer's `down_proj`.
        positions: selected rows of every layer.
    """
    return {f"{name}.{part}": rows for name, rows in zip(names, positions, strict=True) for part in ("weight", "bias")}
