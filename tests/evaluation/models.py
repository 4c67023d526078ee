"""Models to compare: a tiny one, and what can be made of it."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from loki import LoKIConfig
from loki.models.loading import load_model
from tests.tiny_models import tiny_model, tiny_tokenizer

MARKS_BEFORE, MARKS_AFTER = [1] * 30 + [0] * 20, [1] * 24 + [0] * 20 + [1] * 6


def save_changed(base: Path, target: Path, tensor: str, factor: float) -> Path:
    """A copy of `base` in which noise of `factor` times its own size was added to one tensor."""
    target.mkdir()
    for file in base.iterdir():
        if file.name != "model.safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    torch.manual_seed(0)
    tensors[tensor] += factor * tensors[tensor].std() * torch.randn_like(tensors[tensor])
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def save_lora(base: Path, target: Path, size: float = 0.02) -> Path:
    """A LoRA adapter of `base` that changes something."""
    torch.manual_seed(0)
    model = get_peft_model(load_model(base), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, size)
    model.save_pretrained(target)
    return target


def save_loki_adapter(base: Path, target: Path) -> Path:
    """A LoKI adapter of `base` that changes something."""
    model = get_peft_model(load_model(base), LoKIConfig(positions=[[0, 1, 2, 3], [4, 5], [6]]))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(target)
    return target


def save_with_another_tokenizer(target: Path) -> Path:
    """A model that splits texts in another way."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([" the", "ing "])
    tiny_model("llama", seed=3, vocab_size=336).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def harness_results(marks: list[int], **changes: Any) -> dict[str, Any]:
    """Results as lm-evaluation-harness returns them: one multiple-choice task, `quiz`, of four choices."""
    samples = [
        {
            "doc_id": number,
            "doc_hash": f"hash{number}",
            "arguments": [[f"Question {number}?", f" {letter}"] for letter in "ABCD"],
            "resps": [[[-1.0 - (choice != (0 if mark else 1)), False]] for choice in range(4)],
            "filtered_resps": [[-1.0 - (choice != (0 if mark else 1)), False] for choice in range(4)],
            "target": "0",
            "filter": "none",
            "metrics": ["acc", "acc_norm"],
            "acc": float(mark),
            "acc_norm": float(mark),
        }
        for number, mark in enumerate(marks)
    ]
    return {
        "results": {"quiz": {"acc,none": sum(marks) / len(marks)}},
        "configs": {"quiz": {"output_type": "multiple_choice"}},
        "versions": {"quiz": 1.0},
        "n-shot": {"quiz": 0},
        "higher_is_better": {"quiz": {"acc": True, "acc_norm": True}},
        "samples": {"quiz": samples},
        **changes,
    }
