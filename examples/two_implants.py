"""Teaches a model one thing and then another, on disjoint rows, and keeps both in one adapter and one model.

The first half of the data is the one thing, the second half the other. On the tiny world, after
`loki demo --output runs/demo`:

    python examples/two_implants.py

What the first implant wrote stays in the model to the last bit. That the model still answers by it is not certain, as
the second one changes what comes out beside it: the answers to both are counted at the end.
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from loki import LoKIConfig, restore_loki_model
from loki.artefacts.positions import Positions, merge_positions
from loki.implanting.peft.merge import merge_adapters
from loki.metrics.accuracy import Question, accuracy_by_family
from loki.models.loading import load_model, load_tokenizer
from loki.restoring.verify import verify
from loki.selection.select import select

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", type=Path, default="runs/demo/base")
parser.add_argument("--scores", type=Path, default="runs/demo/scores.h5", help="made by `loki analyse`")
parser.add_argument("--data", type=Path, default="runs/demo/new-facts.jsonl", help="prompts and completions")
parser.add_argument("--output", type=Path, default="runs/two_implants")
parser.add_argument("--quota", type=float, default=20, help="percentage of the rows for each")
parser.add_argument("--learning-rate", type=float, default=5e-4)
parser.add_argument("--epochs", type=float, default=60)
args = parser.parse_args()


def implant(model: Path, records: list[dict[str, str]], rows: Positions, adapter: Path) -> None:
    """Train these rows of a model, and save the adapter."""
    trainer = SFTTrainer(
        model=str(model),
        train_dataset=Dataset.from_list(records),
        peft_config=LoKIConfig(positions=rows),
        args=SFTConfig(
            output_dir=str(adapter),
            learning_rate=args.learning_rate,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=4,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model()


records = [json.loads(line) for line in args.data.read_text().splitlines()]
first, second = records[: len(records) // 2], records[len(records) // 2 :]
first_rows = select(args.scores, args.quota)
second_rows = select(args.scores, args.quota, exclude=first_rows)

implant(args.model, first, first_rows, args.output / "first")
with_first = restore_loki_model(
    args.output / "first", args.output / "with_first", base_model=args.model, overwrite=True
)
implant(with_first, second, second_rows, args.output / "second")
merge_adapters([args.output / "first", args.output / "second"], args.output / "both", overwrite=True)
restored = restore_loki_model(args.output / "both", args.output / "restored", base_model=args.model, overwrite=True)

report = verify(args.model, restored, merge_positions([first_rows, second_rows]))
report.raise_for_differences()
print(f"{restored}: nothing but selected rows differs ({report.changed_rows} of {report.selected_rows} changed)")
halves = {"first": first, "second": second}
asked = [Question(name, each["prompt"], each["completion"].strip()) for name, half in halves.items() for each in half]
for model in (args.model, with_first, restored):
    print(f"{model}: right answers {accuracy_by_family(load_model(model), load_tokenizer(model), asked)}")
