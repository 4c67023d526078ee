import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from loki.errors import LokiError
from loki.implanting.peft.adapter_files import read_adapter, write_adapter
from loki.implanting.peft.export import export_lora
from loki.implanting.peft.merge import merge_adapters
from loki.implanting.peft.zero import save_zero_adapter
from tests.implanting.peft.adapters import POSITIONS, RANKS, save_adapter
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("rank", RANKS)
def test_an_adapter_survives_reading_and_writing(tmp_path, rank):
    original = save_adapter(tmp_path / "original", rank=rank)
    adapter = read_adapter(original)
    assert [[delta.rows for delta in layer] for layer in adapter.layers] == [[[1, 3]], [], [[0, 7, 31]]]
    assert [layer.module for layer in adapter.adapted] == [f"model.layers.{i}.mlp.down_proj" for i in (0, 2)]
    assert [layer.matrix.shape for layer in adapter.adapted] == [(2, 48), (3, 48)]
    tensors = load_file(original / "adapter_model.safetensors")
    write_adapter(tmp_path / "copy", adapter.config, adapter.config, tensors)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (original / name).read_bytes()


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    positions = [[layer] for layer in range(11)]
    save_layers(tmp_path, positions)
    assert [layer.module.split(".")[2] for layer in read_adapter(tmp_path).adapted] == [str(i) for i in range(11)]


def save_layers(directory, positions):
    from loki.implanting.peft import LoKIConfig

    get_peft_model(tiny_model(num_hidden_layers=11), LoKIConfig(positions=positions)).save_pretrained(directory)


def test_what_is_no_loki_adapter_is_refused(tmp_path, llama_dir):
    with pytest.raises(LokiError, match=r"adapter_config\.json .*exist"):
        read_adapter(llama_dir)
    get_peft_model(tiny_model(), LoraConfig()).save_pretrained(tmp_path)
    with pytest.raises(LokiError, match="LORA"):
        read_adapter(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    weights = save_adapter(tmp_path) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(LokiError, match="truncated or damaged"):
        read_adapter(tmp_path)
    weights.unlink()
    with pytest.raises(LokiError, match=r"adapter_model\.safetensors .*exist"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "1 layers .* 2"),
        (
            lambda tensors: tensors.update({"x.lora_A.weight": torch.zeros(1)}),
            r"x\.lora_A\.weight",
        ),
        (lambda tensors: tensors.update({min(tensors): torch.zeros(9, 48)}), "fit its 2 positions"),
        (lambda tensors: tensors.update({min(tensors).replace("delta", "A"): torch.zeros(2, 48)}), "do not fit"),
    ],
)
def test_weights_that_do_not_agree_with_the_positions_are_refused(tmp_path, change, message):
    weights = save_adapter(tmp_path) / "adapter_model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    with pytest.raises(LokiError, match=message):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("base_fingerprint", "abc", "base_fingerprint 'abc'"), ("rank", 3, "positions and rank 3")],
)
def test_damaged_configurations_are_refused(tmp_path, name, value, message):
    path = save_adapter(tmp_path, rank=2) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(LokiError, match=message):
        read_adapter(tmp_path)


def test_an_existing_directory_is_not_replaced_without_asking(tmp_path):
    save_adapter(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(LokiError, match="exists already"):
        write_adapter(tmp_path / "adapter", adapter.config, adapter.config, {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    write_adapter(tmp_path / "adapter", adapter.config, adapter.config, {}, overwrite=True)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["inference_mode"] is True
    assert adapter.config.positions == POSITIONS


def test_inputs_are_not_overwritten(tmp_path, llama_dir):
    adapter, other = save_adapter(tmp_path / "adapter", rank=2), save_adapter(tmp_path / "other", [[2], [9], []])
    base = shutil.copytree(llama_dir, tmp_path / "base")
    for write in (
        lambda: export_lora(adapter, adapter, overwrite=True),
        lambda: merge_adapters([adapter, other], other, overwrite=True),
        lambda: save_zero_adapter(base, POSITIONS, base, overwrite=True),
    ):
        with pytest.raises(LokiError, match="holds the input"):
            write()
    assert read_adapter(adapter).config.rank == 2
