"""LoKI model directories: complete, whole or absent, and refused where the parts do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from loki import (
    LoKILlamaConfig,
    LoKILlamaForCausalLM,
    LoKIQwenConfig,
    LoKIQwenForCausalLM,
    create_loki_model,
)
from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.models.checkpoint import INDEX_NAME, Checkpoint, fingerprint
from tests.tiny_models import tiny_model, tiny_tokenizer

POSITIONS = [[1, 30], [7], [0, 4, 5]]


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    write_positions(tmp_path / "positions.json", POSITIONS)
    return tmp_path / "positions.json"


def test_as_the_published_guide_calls_it(llama_dir: Path, positions: Path, tmp_path: Path) -> None:
    create_loki_model(
        loki_model_class=LoKILlamaForCausalLM,
        loki_config_cls=LoKILlamaConfig,
        model_name=str(llama_dir),
        target_pos_path=str(positions),
        save_dir=str(tmp_path / "loki"),
        torch_dtype=torch.bfloat16,
    )
    model = LoKILlamaForCausalLM.from_pretrained(tmp_path / "loki")
    assert model.dtype == torch.bfloat16
    assert model.config.target_pos == POSITIONS
    assert model.config.base_fingerprint == fingerprint(llama_dir)
    assert AutoTokenizer.from_pretrained(tmp_path / "loki").chat_template
    assert (tmp_path / "loki" / "generation_config.json").is_file()


def test_weights_are_the_bases(qwen2_dir: Path, positions: Path, tmp_path: Path) -> None:
    create_loki_model(model_name=qwen2_dir, target_pos_path=positions, save_dir=tmp_path / "loki")
    before, after = load_file(qwen2_dir / "model.safetensors"), load_file(tmp_path / "loki" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    config = json.loads((tmp_path / "loki" / "config.json").read_text())
    assert config["model_type"] == "loki_qwen2"
    assert config["base_model_name_or_path"] == str(qwen2_dir)


def test_sharded_base(positions: Path, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    create_loki_model(
        model_name=tmp_path / "base", target_pos_path=positions, save_dir=tmp_path / "loki", torch_dtype=torch.bfloat16
    )
    assert Checkpoint(tmp_path / "loki").names() == Checkpoint(tmp_path / "base").names()
    index = json.loads((tmp_path / "loki" / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for _, t in Checkpoint(tmp_path / "loki").tensors())


def test_classes_of_another_family(llama_dir: Path, positions: Path, tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="use LoKILlamaConfig"):
        create_loki_model(
            LoKIQwenForCausalLM,
            LoKIQwenConfig,
            model_name=llama_dir,
            target_pos_path=positions,
            save_dir=tmp_path / "loki",
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[0], [1]]", "2 layers.* 3"),
        ("[[0], [32], [1]]", "layer 1 .*row 32"),
        ("[[0], [1, 1], [1]]", "more than once"),
        ("[0, 1, 2]", "list of lists"),
        ("[[0], [1.5], [2]]", "not a row index"),
        ("[[], [], []]", "no row"),
        ("{", "not JSON"),
    ],
)
def test_bad_positions_leave_nothing_behind(llama_dir: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "positions.json").write_text(text)
    with pytest.raises(LokiError, match=message):
        create_loki_model(
            model_name=llama_dir, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "out" / "loki"
        )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_output_that_exists(llama_dir: Path, positions: Path, tmp_path: Path) -> None:
    (tmp_path / "loki").mkdir()
    (tmp_path / "loki" / "mine.txt").write_text("keep")
    with pytest.raises(LokiError, match="--overwrite"):
        create_loki_model(model_name=llama_dir, target_pos_path=positions, save_dir=tmp_path / "loki")
    assert (tmp_path / "loki" / "mine.txt").read_text() == "keep"


def test_a_loki_model_is_no_base(llama_dir: Path, positions: Path, tmp_path: Path) -> None:
    create_loki_model(model_name=llama_dir, target_pos_path=positions, save_dir=tmp_path / "loki")
    with pytest.raises(LokiError, match="restore it first"):
        create_loki_model(model_name=tmp_path / "loki", target_pos_path=positions, save_dir=tmp_path / "again")


def test_the_base_is_not_overwritten(llama_dir: Path, positions: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama_dir, tmp_path / "base")
    with pytest.raises(LokiError, match="holds the input"):
        create_loki_model(model_name=base, target_pos_path=positions, save_dir=base, overwrite=True)
    assert (base / "config.json").read_bytes() == (llama_dir / "config.json").read_bytes()
