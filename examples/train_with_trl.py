"""Trains a LoKI model directory with TRL's SFTTrainer, makes an ordinary model of it, and verifies that.

On the tiny world, after `loki demo --output runs/demo`:

    python examples/train_with_trl.py

`loki create` makes such a directory of any model.
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from loki import restore_loki_model
from loki.implanting.training.rows import SelectedRows
from loki.restoring.verify import verify

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--loki-model", type=Path, default="runs/demo/loki_model", help="made by `loki create`")
parser.add_argument("--data", type=Path, default="runs/demo/new-facts.jsonl", help="prompts and completions")
parser.add_argument("--output", type=Path, default="runs/train_with_trl")
parser.add_argument("--learning-rate", type=float, default=5e-3)
parser.add_argument("--epochs", type=float, default=120)
args = parser.parse_args()

# Exactly the selected rows are trainable. Importing LoKI has taught Transformers its model classes.
model = AutoModelForCausalLM.from_pretrained(args.loki_model)
trainer = SFTTrainer(
    model=model,
    processing_class=AutoTokenizer.from_pretrained(args.loki_model),
    train_dataset=Dataset.from_list([json.loads(line) for line in args.data.read_text().splitlines()]),
    args=SFTConfig(
        output_dir=str(args.output / "checkpoints"),
        learning_rate=args.learning_rate,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=16,
        bf16=False,  # the weights keep their type, and the rows are trained in float32
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
    ),
    callbacks=[SelectedRows(model)],  # trains the rows in float32; stops if anything else is trained
)
trainer.train()
trainer.save_model(str(args.output / "trained"))  # still a LoKI model

restored = restore_loki_model(args.output / "trained", args.output / "restored", overwrite=True)
report = verify(model.config.base_model_name_or_path, restored, model.config.target_pos)
report.raise_for_differences()
print(f"{restored}: nothing but selected rows differs ({report.changed_rows} of {report.selected_rows} changed)")
