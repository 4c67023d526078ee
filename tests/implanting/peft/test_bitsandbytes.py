"""Training on quantised bases; runs where bitsandbytes is installed (it has CPU kernels)."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig
from tests.implanting.peft.adapters import logits
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close

pytest.importorskip("bitsandbytes")

POSITIONS = [[1, 2], [3], [63]]
QUANTISATION = {
    "Linear4bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
    "Linear4bit in bfloat16 storage": {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
    "Linear8bitLt": {"load_in_8bit": True},
}


@pytest.mark.parametrize("kind", QUANTISATION)
@pytest.mark.parametrize("rows_dtype", [torch.bfloat16, torch.float32])
def test_rows_train_and_merge_into_the_unquantised_base_only(tmp_path, kind, rows_dtype):
    tiny_model("llama", hidden_size=64, intermediate_size=128, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(**QUANTISATION[kind]), dtype=torch.bfloat16
    )
    expected = logits(quantised)
    model = get_peft_model(quantised, LoKIConfig(positions=POSITIONS))
    assert torch.equal(logits(model), expected)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # PEFT makes them float32
        parameter.data = parameter.data.to(rows_dtype)
    assert sum(parameter.numel() for parameter in trained) == 4 * 128
    assert train(model, trained)
    with pytest.raises(LokiError, match=r"quantised.* \(" + kind.split()[0] + r"\): .*bfloat16"):
        model.merge_adapter()

    model.save_pretrained(tmp_path / "adapter")
    on_base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    adapted = logits(on_base)
    assert_close(logits(on_base.merge_and_unload()), adapted)


def train(model: torch.nn.Module, trained: list[torch.nn.Parameter]) -> bool:
    """Whether the loss falls within four steps."""
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    prompts = torch.arange(12).reshape(2, 6)
    losses = []
    for _ in range(4):
        loss = model(prompts, labels=prompts).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses[-1] < losses[0]
