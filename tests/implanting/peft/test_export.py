import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from loki.errors import LokiError
from loki.implanting.peft.export import export_lora
from tests.implanting.peft.adapters import RANKS, adapted_model, logits, save_adapter
from tests.programs import run_python
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close, relative_error

# What a machine without LoKI does: importing it fails there, whatever is installed.
WITHOUT_LOKI = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "loki":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
from peft import AutoPeftModelForCausalLM
prompts = torch.arange(2 * 9).reshape(2, 9) * 17 % 320
for folder in sys.argv[1:]:
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.save(model(prompts).logits, folder + "/logits.pt")
assert "loki" not in sys.modules
"""


@pytest.mark.slow
def test_stock_peft_gives_the_same_logits_without_loki(tmp_path, llama_dir):
    expected = {}
    for rank in RANKS:
        model = adapted_model(rank=rank)
        model.peft_config["default"].base_model_name_or_path = str(llama_dir)
        model.save_pretrained(tmp_path / f"loki-{rank}")
        export_lora(tmp_path / f"loki-{rank}", tmp_path / f"lora-{rank}", full_rows=True)
        expected[tmp_path / f"lora-{rank}"] = logits(model)
    run_python("-c", WITHOUT_LOKI, *expected)
    for folder, values in expected.items():
        assert relative_error(torch.load(folder / "logits.pt"), values) <= 1e-6


@pytest.mark.parametrize(("rank", "expected"), [(None, 3), (2, 2)])
def test_the_product_is_the_delta_bit_for_bit(tmp_path, rank, expected):
    model = adapted_model(rank=rank)
    model.save_pretrained(tmp_path / "loki")
    assert export_lora(tmp_path / "loki", tmp_path / "lora", full_rows=True) == expected
    merged = PeftModel.from_pretrained(tiny_model(), tmp_path / "lora").merge_and_unload().state_dict()
    ours = model.merge_and_unload().state_dict()
    for name, weight in ours.items():
        if rank is None:
            assert torch.equal(merged[name], weight), name
        else:
            assert_close(merged[name], weight)


def test_lora_b_is_zero_outside_the_selected_rows(tmp_path):
    export_lora(save_adapter(tmp_path / "loki", rank=2), tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    up = tensors["base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"]
    assert up.shape == (32, 2)
    assert up.any(dim=1).nonzero().flatten().tolist() == [0, 7, 31]
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 2)]
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 2, "LORA")


def test_full_rows_are_exported_only_on_request(tmp_path):
    save_adapter(tmp_path / "loki")
    with pytest.raises(LokiError, match=r"--full-rows .*rank 3"):
        export_lora(tmp_path / "loki", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
