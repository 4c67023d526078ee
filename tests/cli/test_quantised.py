"""Quantised models: every command that reads or edits rows refuses them in one line, before it has written anything."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loki.artefacts.positions import write_positions
from loki.implanting.peft.zero import save_zero_adapter
from tests.artefacts.scores_files import write_scores
from tests.cli.running import Shell

# The projections' type on disk, and what config.json says of it.
KINDS = {
    "bitsandbytes": (torch.uint8, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "fp8": (torch.float8_e4m3fn, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "gptq": (torch.int32, {"quant_method": "gptq", "bits": 4, "group_size": 16}),
    "awq": (torch.int32, {"quant_method": "awq", "bits": 4, "group_size": 16}),
    "nothing": (torch.int8, None),
}
COMMANDS = {
    "create": "{model} --positions {positions}",
    "train": "{model} --positions {positions} --data {data}",
    "tune": "{model} --positions {positions} --data {data}",
    "restore": "{adapter} --base {model}",
    "scale": "{adapter} --base {model} --data {data} --keep {text}",
    "verify": "{model} {model} --positions {positions}",
    "suppress": "{model} --positions {positions}",
    "ablate": "{model} --scores {scores} --quotas 10 --text {text}",
    "select": "--strategy magnitude --model {model} --quota 10",
    "run": "{model} --data {data} --calibration {questions}",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_no_plain_numbers(shell: Shell, llama_dir: Path, tmp_path: Path, kind: str) -> None:
    dtype, configuration = KINDS[kind]
    files = {
        name: tmp_path / ending
        for name, ending in (
            ("model", "model"),
            ("positions", "positions.json"),
            ("data", "data.jsonl"),
            ("questions", "questions.jsonl"),
            ("text", "text.txt"),
            ("scores", "scores.h5"),
            ("adapter", "adapter"),
        )
    }
    shutil.copytree(llama_dir, files["model"])
    tensors = load_file(llama_dir / "model.safetensors")
    packed = {name: value.to(dtype) if "proj.weight" in name else value for name, value in tensors.items()}
    save_file(packed, files["model"] / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((llama_dir / "config.json").read_text())
    if configuration is not None:
        values["quantization_config"] = configuration
    (files["model"] / "config.json").write_text(json.dumps(values))
    write_positions(files["positions"], [[1], [2], [3]])
    files["data"].write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n')
    files["questions"].write_text('{"prompt": "Who?"}\n')
    files["text"].write_text("Nothing in particular.")
    write_scores(files["scores"], np.ones((2, 3, 32), dtype=np.float32))
    save_zero_adapter(llama_dir, [[1], [2], [3]], files["adapter"])
    before = sorted(tmp_path.rglob("*"))
    for command, words in COMMANDS.items():
        output = () if command in ("verify", "scale") else ("--output", tmp_path / "output")
        outcome = shell(command, *(word.format(**files) for word in words.split()), *output)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), (command, outcome)
        assert "unquantised" in outcome.err, (command, outcome)
        assert sorted(tmp_path.rglob("*")) == before, command
