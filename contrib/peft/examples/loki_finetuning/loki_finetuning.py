# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft import LokiConfig, get_peft_model
from peft.tuners.loki import measure_second_moments
from peft.tuners.loki.model import TARGET_MODULES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help='JSON lines of {"text": ...}')
    parser.add_argument("--general", type=Path, required=True, help="text on which the model should stay as it is")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--positions", type=Path, help="rows to train, one list per layer; default: 30 percent, random"
    )
    parser.add_argument("--protect", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=256)
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model.to(device)

    ids = tokenizer(arguments.general.read_text(), return_tensors="pt").input_ids.to(device)
    pieces = [{"input_ids": piece} for piece in ids.split(arguments.max_length, dim=1)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    moments = arguments.output / "moments.safetensors"
    tokens = measure_second_moments(model, TARGET_MODULES[model.config.model_type], pieces, str(moments))
    print(f"input directions measured on {tokens} tokens")

    rows = {"quota": 30} if arguments.positions is None else {"positions": json.loads(arguments.positions.read_text())}
    config = LokiConfig(task_type="CAUSAL_LM", protect=arguments.protect, moments=str(moments), **rows)
    model = get_peft_model(model, config)
    model.print_trainable_parameters()

    texts = [json.loads(line)["text"] for line in arguments.data.read_text().splitlines() if line]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=arguments.learning_rate)
    model.train()
    for epoch in range(arguments.epochs):
        for text in texts:
            batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=arguments.max_length).to(device)
            loss = model(**batch, labels=batch.input_ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    model.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
