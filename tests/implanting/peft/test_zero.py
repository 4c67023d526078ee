import json
import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load, load_file, save_file

from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from loki.implanting.peft.zero import save_zero_adapter
from loki.inputs import read_json
from loki.models.loading import load_model
from tests.implanting.peft.adapters import POSITIONS, RANKS, logits
from tests.tiny_models import save_tiny_model, tiny_model


@pytest.mark.parametrize("rank", RANKS)
def test_it_loads_trainable_and_changes_nothing(tmp_path, llama_dir, rank):
    save_zero_adapter(llama_dir, POSITIONS, tmp_path / "zero", rank=rank)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "zero", is_trainable=True)
    assert torch.equal(logits(model), logits(tiny_model()))
    fresh = get_peft_model(tiny_model(), LoKIConfig(positions=POSITIONS, rank=rank))
    assert model.get_nb_trainable_parameters() == fresh.get_nb_trainable_parameters()
    model(torch.arange(12).reshape(2, 6), labels=torch.arange(12).reshape(2, 6)).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if p.requires_grad and "loki_A" not in name]
    assert all(gradient.count_nonzero() > 0 for gradient in gradients)


def test_it_says_the_same_as_an_adapter_saved_from_the_loaded_model(tmp_path, llama_dir):
    write_positions(tmp_path / "pos.json", POSITIONS)
    save_zero_adapter(llama_dir, tmp_path / "pos.json", tmp_path / "zero")
    get_peft_model(load_model(llama_dir), LoKIConfig(positions=POSITIONS)).save_pretrained(tmp_path / "saved")
    configs = [read_json(tmp_path / name / "adapter_config.json", what="") for name in ("zero", "saved")]
    assert configs[0] == configs[1]
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("zero", "saved")]
    assert weights[0] == weights[1]


def test_positions_of_another_model_and_existing_output_are_refused(tmp_path, llama_dir):
    with pytest.raises(LokiError, match=r"1 layers.* 3"):
        save_zero_adapter(llama_dir, [[0]], tmp_path / "zero")
    assert not (tmp_path / "zero").exists()
    save_zero_adapter(llama_dir, POSITIONS, tmp_path / "zero")
    with pytest.raises(LokiError, match="exists already"):
        save_zero_adapter(llama_dir, POSITIONS, tmp_path / "zero")


def test_a_base_whose_weights_contradict_its_configuration(tmp_path, llama_dir):
    base = shutil.copytree(llama_dir, tmp_path / "base")
    tensors = load((base / "model.safetensors").read_bytes())  # none of them in the file that is written
    name = "model.layers.1.mlp.down_proj.weight"
    for wrong, shape in ((tensors[name][None], r"\[1, 32, 48\]"), (tensors[name].flatten(), r"\[1536\]")):
        save_file({**tensors, name: wrong.clone()}, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(LokiError, match=rf"{name} is {shape}, and \[32, 48\]"):
            save_zero_adapter(base, POSITIONS, tmp_path / "zero")
    assert not (tmp_path / "zero").exists()


def test_a_quantised_base_has_no_fingerprint(tmp_path, llama_dir):
    base = shutil.copytree(llama_dir, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    packed = {name: value.to(torch.int8) if "proj" in name else value for name, value in tensors.items()}
    save_file(packed, base / "model.safetensors", metadata={"format": "pt"})
    values = read_json(base / "config.json", what="")
    values["quantization_config"] = {"quant_method": "gptq", "bits": 8}
    (base / "config.json").write_text(json.dumps(values))
    assert save_zero_adapter(base, POSITIONS, tmp_path / "zero").base_fingerprint is None


def test_tied_and_bfloat16_models(tmp_path):
    directory = save_tiny_model(tmp_path / "base", "gemma2", dtype=torch.bfloat16, tie_word_embeddings=True)
    save_zero_adapter(directory, POSITIONS, tmp_path / "zero")
    base = type(tiny_model("gemma2")).from_pretrained(directory)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "zero").bfloat16()), logits(base))
