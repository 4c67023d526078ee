"""Trains a LoKI adapter with PEFT and Transformers' Trainer, saves it, loads it again, and merges it into the model.

On the tiny world, after `loki demo --output runs/demo`:

    python examples/train_with_peft.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from loki import LoKIConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="runs/demo/base")
parser.add_argument("--positions", type=Path, default="runs/demo/positions.json", help="made by `loki select`")
parser.add_argument("--moments", type=Path, default="runs/demo/moments.safetensors", help="made by `loki moments`")
parser.add_argument("--data", type=Path, default="runs/demo/new-facts.jsonl", help="prompts and completions")
parser.add_argument("--output", type=Path, default="runs/train_with_peft")
parser.add_argument("--learning-rate", type=float, default=5e-3)
parser.add_argument("--epochs", type=float, default=120)
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.model)


def encode(record: dict[str, str]) -> dict[str, Any]:
    """Tokens of prompt and completion; loss is taken on the completion and its end."""
    prompt = tokenizer(record["prompt"])["input_ids"]
    completion = [*tokenizer(record["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": [*prompt, *completion], "labels": [-100] * len(prompt) + completion}


# Without `protect` and `moments` the rows are trained along all input directions, and with `rank=16` as a product.
config = LoKIConfig(positions=args.positions, protect=0.5, moments=args.moments)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.model), config)
model.print_trainable_parameters()
trainer = Trainer(
    model=model,
    train_dataset=[encode(json.loads(line)) for line in args.data.read_text().splitlines()],
    data_collator=DataCollatorForSeq2Seq(tokenizer),
    args=TrainingArguments(
        output_dir=str(args.output / "checkpoints"),
        learning_rate=args.learning_rate,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=16,
        save_strategy="no",
        report_to="none",
    ),
)
trainer.train()
model.save_pretrained(args.output / "adapter")

# What serves the model needs no LoKI in its code: PEFT knows the adapter by itself.
loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(args.model), args.output / "adapter")
merged = loaded.merge_and_unload()
merged.save_pretrained(args.output / "merged")
tokenizer.save_pretrained(args.output / "merged")
print(f"adapter: {args.output / 'adapter'}, merged into the model: {args.output / 'merged'}")
