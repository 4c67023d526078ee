"""Checkpoints are read tensor by tensor, and their fingerprint depends on the weights alone."""

import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loki.errors import LokiError
from loki.models.checkpoint import INDEX_NAME, SINGLE_NAME, Checkpoint, fingerprint
from loki.models.experts import RowTensor
from tests.tiny_models import tiny_model


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / INDEX_NAME).is_file()
    return tmp_path / "sharded"


def test_reads_what_the_model_holds(sharded: Path) -> None:
    expected = tiny_model("llama").state_dict()
    checkpoint = Checkpoint(sharded)
    assert checkpoint.names() == sorted(expected)
    for name, tensor in checkpoint.tensors():
        assert torch.equal(tensor, expected[name])
        assert checkpoint.shape(name) == tuple(tensor.shape)


def test_fingerprint_ignores_sharding(llama_dir: Path, sharded: Path) -> None:
    assert fingerprint(llama_dir) == fingerprint(sharded)


def test_fingerprint_sees_one_changed_element(llama_dir: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[31, 47] += 1
    model.save_pretrained(tmp_path)
    assert fingerprint(llama_dir) != fingerprint(tmp_path)


def test_missing_tensor_is_named(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    for read in (checkpoint.tensor, checkpoint.shape):
        with pytest.raises(LokiError, match=r"no tensor model\.layers\.7\.mlp"):
            read("model.layers.7.mlp.down_proj.weight")


def test_tensor_of_another_shape_than_the_configuration_says(llama_dir: Path) -> None:
    checkpoint = Checkpoint(llama_dir)
    rows = RowTensor("model.layers.1.mlp.down_proj.weight", 0, (32, 48), "model.layers.1.mlp.down_proj.weight")
    checkpoint.check_shapes([rows])
    for shape in ((32, 47), (1, 32, 48), (32,)):
        with pytest.raises(LokiError, match=re.escape(f"layers.1.mlp.down_proj.weight is [32, 48], and {list(shape)}")):
            checkpoint.check_shapes([replace(rows, shape=shape)])


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}])
def test_index_without_weights(sharded: Path, index: object) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(LokiError, match="weight index"):
        Checkpoint(sharded)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "model.bin", "", "a/b.safetensors"])
def test_index_that_names_something_elsewhere(sharded: Path, shard: str) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(LokiError, match=r"weight_map\.a"):
        Checkpoint(sharded)


def test_index_that_names_the_wrong_shard(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = sorted(set(index["weight_map"].values()) - {index["weight_map"][name]})[0]
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(LokiError, match=name):
        Checkpoint(sharded)


@pytest.mark.parametrize("header", [[], {"a": 3}, {"a": {"data_offsets": [0]}}, {"a": {}}])
def test_damaged_header(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tmp_path / SINGLE_NAME).write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(LokiError, match="truncated or damaged"):
        Checkpoint(tmp_path)


def test_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(LokiError, match=shard.name):
        Checkpoint(sharded)
