"""The files of a model directory beside its weights: tokenizer, chat templates, licence and so on."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

# Not copied: what is written anew, or belongs to a training rather than to the model.
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
