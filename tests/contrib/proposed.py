"""Run with the proposed PEFT: loads LoKI's adapters, trains and saves one, and writes what came of it.

`python proposed.py BASE ADAPTERS OUTPUT`: for every adapter directory in ADAPTERS.
"""

import sys
from pathlib import Path

import torch
from peft import LokiConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

assert "loki" not in sys.modules
base, adapters, output = map(Path, sys.argv[1:])
PROMPTS = torch.arange(2 * 9).reshape(2, 9) * 17 % 320


def load() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base)


for adapter in sorted(adapters.iterdir()):
    model = PeftModel.from_pretrained(load(), adapter, is_trainable=True).eval()
    assert type(model.peft_config["default"]) is LokiConfig
    model.save_pretrained(output / adapter.name / "saved")
    with torch.no_grad():
        results = {"logits": model(PROMPTS).logits}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(PROMPTS, labels=PROMPTS).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(output / adapter.name / "trained")
    merged = model.merge_and_unload()
    results |= {f"merged.{name}": tensor.contiguous() for name, tensor in merged.state_dict().items()}
    save_file({name: tensor.clone() for name, tensor in results.items()}, output / adapter.name / "results.safetensors")

drawn = get_peft_model(load(), LokiConfig(quota=25, init_weights=False, task_type="CAUSAL_LM")).eval()
drawn.save_pretrained(output / "drawn")
with torch.no_grad():
    save_file({"logits": drawn(PROMPTS).logits}, output / "drawn.safetensors")
