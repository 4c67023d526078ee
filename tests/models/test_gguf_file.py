"""A `.gguf` file is a model like any other: dequantised once, and exactly."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loki.errors import LokiError
from loki.models.gguf_file import _check_tokenizer
from loki.models.loading import load_model, load_tokenizer, resolve_model
from loki.models.model_directory import ModelDirectory
from tests.programs import run_python
from tests.tiny_models import save_tiny_model

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 as llama.cpp would store it, its MLPs in eight bits."""
    folder = tmp_path_factory.mktemp("gguf")
    base = ModelDirectory(save_tiny_model(folder / "base", "qwen2", intermediate_size=64))
    config, tokenizer = base.text_config, base.tokenizer
    writer = gguf.GGUFWriter(folder / "tiny.Q8_0.gguf", "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    tokens += ["th", "the"]
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(len(tokens), config.vocab_size)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in load_file(base.path / "model.safetensors").items():
        stem, _, ending = name.rpartition(".")
        values = tensor.float().numpy()
        if ".mlp." in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(f"{names.get_name(stem)}.{ending}", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{ending}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "tiny.Q8_0.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOKI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_its_values_are_those_of_the_file(file: Path, cache: Path) -> None:
    found = load_file(resolve_model(file) / "model.safetensors")
    reader = gguf.GGUFReader(file)
    stored = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
        if "ffn_down" in tensor.name
    }
    assert len(stored) == 3
    for index in range(3):
        weight = found[f"model.layers.{index}.mlp.down_proj.weight"]
        assert weight.dtype == torch.float32
        assert np.array_equal(weight.numpy(), stored[f"blk.{index}.ffn_down.weight"])
    assert load_model(file).config.num_hidden_layers == 3
    assert load_tokenizer(file).decode(load_tokenizer(file)("two cats")["input_ids"]) == "two cats"
    (made,) = (cache / "gguf").iterdir()
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(file) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before


def test_a_file_that_has_changed_is_read_anew(file: Path) -> None:
    first = resolve_model(file)
    os.utime(file, ns=(1, 1))
    assert resolve_model(file) != first


class SplitsWords:
    """What Transformers 5.17 makes of a file's tokenizer: words that are in the vocabulary are split into letters."""

    bos_token_id = 0

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_a_tokenizer_that_comes_out_broken_is_refused(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"▁the": 5, "▁of": 6, "▁and": 7, "x": 8}
    tokenizers = SimpleNamespace(from_pretrained=lambda *_, **__: SplitsWords(words))
    monkeypatch.setattr("loki.models.gguf_file.AutoTokenizer", tokenizers)
    with pytest.raises(LokiError, match=r"tiny\.Q8_0\.gguf.*splits 'the'"):
        resolve_model(file)
    assert not any((cache / "gguf").iterdir())


def test_a_start_token_that_is_lost_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "starts.gguf", "qwen2")
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(LokiError, match="start token"):
        _check_tokenizer(SplitsWords({}), tmp_path / "starts.gguf")  # type: ignore[arg-type]


@pytest.mark.slow
def test_all_phases_start_from_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n')
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 4)
    words = ["run", file, "--data", "train.jsonl", "--calibration", "questions.jsonl", "--output", "run"]
    done = run_python("-m", "loki", *words, "--max-steps", "3", "--learning-rate", "1e-2", cwd=tmp_path)
    assert "selected rows changed, and nothing else" in done.stdout
    assert "tiny.Q8_0.gguf is dequantised to float32 (once)" in done.stdout + done.stderr


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_damaged_files_are_one_line(tmp_path: Path, cache: Path, content: bytes) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(LokiError, match=r"broken\.gguf"):
        resolve_model(tmp_path / "broken.gguf")
    assert not any((cache / "gguf").iterdir())


def test_the_missing_package_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loki.models.gguf_file.find_spec", lambda name: None)
    with pytest.raises(LokiError, match="pip install gguf"):
        resolve_model(file)
