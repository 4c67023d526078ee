"""Trains a LoKI model directory with LlamaFactory's own command line, and makes an ordinary model of it.

`make llamafactory` sets up an environment with LlamaFactory and LoKI in .venv-llamafactory. On the tiny world, after
`loki demo --output runs/demo`:

    python examples/train_with_llamafactory.py --cli .venv-llamafactory/bin/llamafactory-cli

`loki train --backend llamafactory` does all this, and more, in one command.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from transformers import AutoConfig, AutoTokenizer

from loki import restore_loki_model
from loki.restoring.verify import verify

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--cli", default=".venv-llamafactory/bin/llamafactory-cli", help="LlamaFactory's command")
parser.add_argument("--loki-model", type=Path, default="runs/demo/loki_model", help="made by `loki create`")
parser.add_argument("--data", type=Path, default="runs/demo/new-facts.jsonl", help="prompts and completions")
parser.add_argument("--template", default="empty", help="LlamaFactory's name of the model's chat template")
parser.add_argument("--output", type=Path, default="runs/train_with_llamafactory")
parser.add_argument("--learning-rate", type=float, default=5e-3)
parser.add_argument("--epochs", type=float, default=120)
args = parser.parse_args()
if (cli := shutil.which(args.cli)) is None:
    sys.exit(f"{args.cli} is not there: `make llamafactory` sets LlamaFactory up, or name its command with --cli")

tokenizer, output = AutoTokenizer.from_pretrained(args.loki_model), args.output.resolve()
# The template `empty` adds nothing: what starts and ends a text is written into it.
start, end = (tokenizer.bos_token or "", tokenizer.eos_token) if args.template == "empty" else ("", "")
records = [json.loads(line) for line in args.data.read_text().splitlines()]
records = [{"prompt": start + each["prompt"], "completion": each["completion"] + end} for each in records]
columns = {"prompt": "prompt", "response": "completion"}
settings = {
    "model_name_or_path": str(args.loki_model.resolve()),
    "trust_remote_code": True,  # lets LlamaFactory load the LoKI classes
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",  # of a LoKI model the selected rows alone are trainable, and this leaves it so
    "dataset": "mine",
    "dataset_dir": str(output),
    "template": args.template,
    "output_dir": str(output / "trained"),
    "overwrite_output_dir": True,
    "per_device_train_batch_size": 16,
    "learning_rate": args.learning_rate,
    "num_train_epochs": args.epochs,
    "save_strategy": "no",
    "report_to": "none",
}
output.mkdir(parents=True, exist_ok=True)
(output / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
(output / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "train.jsonl", "columns": columns}}))
(output / "train.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
subprocess.run([cli, "train", output / "train.yaml"], check=True)

config = AutoConfig.from_pretrained(args.loki_model)
restored = restore_loki_model(output / "trained", output / "restored", overwrite=True)
report = verify(config.base_model_name_or_path, restored, config.target_pos)
report.raise_for_differences()
print(f"{restored}: nothing but selected rows differs ({report.changed_rows} of {report.selected_rows} changed)")
