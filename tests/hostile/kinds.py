"""The kinds of input: which file is edited, how, and which commands read it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from tests.hostile.edits import Edit, json_edits
from tests.hostile.hdf5_edits import hdf5_edits
from tests.hostile.originals import TRAIN
from tests.hostile.tensor_edits import tensor_edits

Command = tuple[object, ...]

ANALYSE = ("analyse", "base", "--data", "questions.jsonl", "--output", "out.h5")
ANALYSE_SHARDED = ("analyse", "sharded", "--data", "questions.jsonl", "--output", "out.h5")
CREATE = ("create", "base", "--positions", "positions.json", "--output", "out")
CREATE_SHARDED = ("create", "sharded", "--positions", "positions.json", "--output", "out")
SUPPRESS = ("suppress", "base", "--positions", "positions.json", "--output", "out")
SUPPRESS_SHARDED = ("suppress", "sharded", "--positions", "positions.json", "--output", "out")
ADAPTER = ("adapter", "base", "--positions", "positions.json", "--output", "out")
TRAIN_BASE = ("train", "base", "--positions", "positions.json", "--data", "train.jsonl", "--output", "out", *TRAIN)
TRAIN_LOKI = ("train", "loki", "--data", "train.jsonl", "--output", "out", *TRAIN)
RESTORE = ("restore", "trained", "--output", "out")
RESTORE_BASE = ("restore", "trained", "--output", "out", "--base", "base")
RESTORE_LOKI = ("restore", "loki", "--output", "out", "--allow-unchanged")
RESTORE_ADAPTER = ("restore", "adapter", "--base", "base", "--output", "out", "--allow-unchanged")
RESTORE_RANKED = ("restore", "ranked", "--base", "base", "--output", "out", "--allow-unchanged")
VERIFY = ("verify", "base", "restored", "--positions", "positions.json")
EXCLUDE = ("select", "scores.h5", "--quota", 25, "--exclude", "positions.json", "--output", "out.json")
SELECT = ("select", "scores.h5", "--quota", 25, "--output", "out.json")
INSPECT = ("inspect", "scores.h5")
MERGE = ("merge", "scores.h5", "more.h5", "--output", "out.h5")
MERGE_ADAPTERS = ("merge-adapters", "adapter", "ranked", "--output", "out")
EXPORT = ("export-lora", "ranked", "--output", "out")
EXPORT_FULL = ("export-lora", "adapter", "--full-rows", "--output", "out")


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: for the table.
        edited: the file, in the folder of originals.
        edits: from the valid file to a strategy of edits.
        commands: those that read it.
    """

    name: str
    edited: str
    edits: Callable[[Path], st.SearchStrategy[Edit]]
    commands: tuple[Command, ...]


_CONFIG = (
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "text_config",
    "torch_dtype",
    "auto_map",
    "id2label",
)
_ROWS = ("down_proj.weight", "embed_tokens", "q_proj", "norm")
_ADAPTER = ("auto_mapping", "peft_version", "revision", "runtime_config", "modules_to_save", "x")
_TOKENIZER = ("chat_template", "tokenizer_class", "add_bos_token", "added_tokens_decoder", "auto_map", "padding_side")
_SCORES = (SELECT, INSPECT, MERGE)


def _json(*more: str) -> Callable[[Path], st.SearchStrategy[Edit]]:
    return lambda original: json_edits(original, more)


def _tensors(*names: str) -> Callable[[Path], st.SearchStrategy[Edit]]:
    return lambda original: tensor_edits(original, names)


KINDS = (
    Kind("positions", "positions.json", _json(), (EXCLUDE, CREATE, SUPPRESS, VERIFY, ADAPTER, TRAIN_BASE)),
    Kind(
        "config.json",
        "base/config.json",
        _json(*_CONFIG),
        (ANALYSE, CREATE, SUPPRESS, VERIFY, ADAPTER, TRAIN_BASE, RESTORE_ADAPTER, RESTORE_BASE),
    ),
    Kind(
        "safetensors",
        "base/model.safetensors",
        _tensors(*_ROWS),
        (ANALYSE, CREATE, SUPPRESS, VERIFY, ADAPTER, TRAIN_BASE, RESTORE_ADAPTER, RESTORE_BASE),
    ),
    Kind("restored weights", "restored/model.safetensors", _tensors(*_ROWS), (VERIFY,)),
    Kind("trained weights", "trained/model.safetensors", _tensors(*_ROWS), (RESTORE,)),
    Kind(
        "shard index",
        "sharded/model.safetensors.index.json",
        _json("x"),
        (CREATE_SHARDED, SUPPRESS_SHARDED, ANALYSE_SHARDED),
    ),
    Kind("tokenizer.json", "base/tokenizer.json", _json(), (ANALYSE, TRAIN_BASE, CREATE)),
    Kind(
        "tokenizer_config.json", "base/tokenizer_config.json", _json(*_TOKENIZER), (ANALYSE, TRAIN_BASE, RESTORE_BASE)
    ),
    Kind(
        "generation_config.json",
        "base/generation_config.json",
        _json("temperature", "x"),
        (ANALYSE, CREATE, TRAIN_BASE),
    ),
    Kind("trained tokenizer", "trained/tokenizer_config.json", _json(*_TOKENIZER), (RESTORE,)),
    Kind("trained generation", "trained/generation_config.json", _json("temperature", "x"), (RESTORE,)),
    Kind("scores", "scores.h5", lambda original: hdf5_edits(original), _SCORES),
    Kind(
        "scores, to add to",
        "scores.h5",
        lambda original: hdf5_edits(original),
        (
            ("analyse", "base", "--data", "questions.jsonl", "--output", "scores.h5", "--write-mode", "a"),
            ("analyse", "base", "--data", "questions.jsonl", "--output", "scores.h5"),
        ),
    ),
    Kind(
        "published scores",
        "published.h5",
        lambda original: hdf5_edits(original),
        (
            ("select", "published.h5", "--quota", 25, "--output", "out.json"),
            ("inspect", "published.h5"),
        ),
    ),
    Kind(
        "adapter configuration",
        "adapter/adapter_config.json",
        _json(*_ADAPTER),
        (RESTORE_ADAPTER, MERGE_ADAPTERS, EXPORT_FULL),
    ),
    Kind(
        "ranked configuration", "ranked/adapter_config.json", _json(*_ADAPTER), (RESTORE_RANKED, MERGE_ADAPTERS, EXPORT)
    ),
    Kind(
        "adapter weights",
        "adapter/adapter_model.safetensors",
        _tensors("layers.0", "layers.1"),
        (RESTORE_ADAPTER, MERGE_ADAPTERS, EXPORT_FULL),
    ),
    Kind(
        "ranked weights",
        "ranked/adapter_model.safetensors",
        _tensors("loki_A", "loki_B"),
        (RESTORE_RANKED, MERGE_ADAPTERS, EXPORT),
    ),
    Kind("LoKI configuration", "loki/config.json", _json(*_CONFIG), (TRAIN_LOKI, RESTORE_LOKI)),
    Kind("trained configuration", "trained/config.json", _json(*_CONFIG), (RESTORE,)),
    Kind(
        "training record",
        "trained/training.json",
        _json("finished"),
        (("train", "loki", "--data", "train.jsonl", "--output", "trained", *TRAIN),),
    ),
)
