"""Good models load; every kind of bad one is refused in one clear line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, T5Config

from loki.errors import LokiError
from loki.models.loading import load_config, load_model, load_tokenizer, resolve_model
from loki.models.tensor_names import stored_row_tensors
from tests.tiny_models import ATTENTION_FAMILIES, FAMILIES, save_tiny_model, tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture
def copy_of_llama(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "copy"))


def change_config(directory: Path, changes: dict[str, object]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loads_model_tokenizer_and_config(llama_dir: Path) -> None:
    model = load_model(llama_dir, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert load_config(llama_dir).model_type == "llama"
    assert load_tokenizer(llama_dir).chat_template


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c"])
def test_missing_directory(name: str) -> None:
    with pytest.raises(LokiError, match="does not exist"):
        resolve_model(name)


def test_hub_id_without_network_names_both_ways() -> None:
    with pytest.raises(LokiError, match="hub model"):
        resolve_model("nobody/no-such-model")


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"has no config\.json"):
        load_config(tmp_path)


def test_damaged_config(copy_of_llama: Path) -> None:
    (copy_of_llama / "config.json").write_text("{")
    with pytest.raises(LokiError, match=r"config\.json is not JSON"):
        load_config(copy_of_llama)


def test_unknown_model_type(copy_of_llama: Path) -> None:
    change_config(copy_of_llama, {"model_type": "no_such_family"})
    with pytest.raises(LokiError, match="no_such_family"):
        load_config(copy_of_llama)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "abc"},
        {"num_attention_heads": 5},
        {"vocab_size": None},
        {"rope_scaling": "x"},
        {"rope_parameters": {"rope_type": ["default"], "rope_theta": 1e4}},
        {"rope_parameters": {"full_attention": {"rope_type": {}, "rope_theta": 1e4}}},
        {"dtype": "float31"},
        {"architectures": 3},
    ],
    ids=str,
)
def test_impossible_values_in_the_configuration(copy_of_llama: Path, changes: dict[str, object]) -> None:
    change_config(copy_of_llama, changes)
    with pytest.raises(LokiError, match=r"config\.json") as raised:
        load_config(copy_of_llama)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[]", "3", "1" * 5000])
def test_configuration_that_is_no_object(copy_of_llama: Path, text: str) -> None:
    (copy_of_llama / "config.json").write_text(text)
    with pytest.raises(LokiError, match=r"config\.json"):
        load_config(copy_of_llama)


def test_configuration_that_makes_no_model(copy_of_llama: Path) -> None:
    change_config(copy_of_llama, {"hidden_act": "nope"})
    with pytest.raises(LokiError, match="nope"):
        stored_row_tensors(load_config(copy_of_llama), [])
    with pytest.raises(LokiError, match="nope"):
        load_model(copy_of_llama)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 0},
        {"vocab_size": 2**39},
        {"intermediate_size": -1},
        {"intermediate_size": 2**38},
        {"num_attention_heads": 0},
        {"rms_norm_eps": float("nan")},
        {"attention_dropout": None},
        {"target_pos": "x"},
    ],
    ids=str,
)
def test_values_out_of_bounds(copy_of_llama: Path, changes: dict[str, object]) -> None:
    change_config(copy_of_llama, changes)
    with pytest.raises(LokiError, match=next(iter(changes))):
        load_config(copy_of_llama)


@pytest.mark.parametrize("family", [*FAMILIES, *ATTENTION_FAMILIES])
def test_directory_without_tokenizer(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    with pytest.raises(LokiError, match="tokenizer"):
        load_tokenizer(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab()


def test_encoder_only(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(LokiError, match="decoder-only"):
        load_model(tmp_path)


def test_encoder_decoder(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(LokiError, match="encoder-decoder"):
        load_config(tmp_path)


def test_a_model_that_also_takes_images(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "gemma3")
    model = load_model(tmp_path)
    assert type(model).__name__ == "Gemma3ForConditionalGeneration"
    expected = load_file(tmp_path / "model.safetensors")["vision_tower.embeddings.patch_embedding.weight"]
    assert torch.equal(model.model.vision_tower.embeddings.patch_embedding.weight, expected)


@pytest.mark.parametrize("size", [4, 100, 5000])
def test_truncated_weights(copy_of_llama: Path, size: int) -> None:
    weights = copy_of_llama / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(LokiError, match="truncated or damaged"):
        load_model(copy_of_llama)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt_neox"])
def test_a_tied_output_embedding_need_not_be_stored(family: str, tmp_path: Path) -> None:
    saved = tiny_model(family, tie_word_embeddings=True)
    saved.save_pretrained(tmp_path)
    assert not {"lm_head.weight", "embed_out.weight"} & load_file(tmp_path / "model.safetensors").keys()
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.get_output_embeddings().weight, saved.get_output_embeddings().weight)


def test_missing_and_mismatched_tensors_are_named(copy_of_llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = load_file(copy_of_llama / "model.safetensors")
    del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.2.mlp.down_proj.weight"] = torch.ones(32, 40)
    save_file(weights, copy_of_llama / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(LokiError) as raised:
        load_model(copy_of_llama)
    for words in ("layers.1.mlp.up_proj.weight is missing", "model.norm.weight is missing", "[32, 40] instead of [32,"):
        assert words in str(raised.value)
    assert "MISSING" not in "".join(capfd.readouterr())  # no table of Transformers beside the one line


def test_pickled_weights_are_not_read(copy_of_llama: Path) -> None:
    (copy_of_llama / "model.safetensors").rename(copy_of_llama / "pytorch_model.bin")
    with pytest.raises(LokiError, match="safetensors only"):
        load_model(copy_of_llama)
