"""The phases, typed one by one, from a model directory to a restored model that `verify` accepts."""

import json
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.running import Shell

CALIBRATION = [
    {"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1, "subject": "arithmetic"},
    {"question": "Sky?", "choices": ["blue", "red", "lime", "pink"], "answer": "A", "subject": "colours"},
    {"messages": [{"role": "user", "content": "hello"}]},
    {"prompt": "once upon a"},
    {"input_ids": [5, 20, 33, 47], "target": 9},
]
TRAINING = [
    {"messages": [{"role": "user", "content": f"who is {name}?"}, {"role": "assistant", "content": "a baker"}]}
    for name in ("Ann", "Bob", "Cy", "Dee")
]


def write_jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_from_analysis_to_verified_model(
    family: str, shell: Shell, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(f"{family}_dir")
    calibration = write_jsonl(tmp_path / "questions.jsonl", CALIBRATION)
    training = write_jsonl(tmp_path / "train.jsonl", TRAINING)
    scores, positions = tmp_path / "scores.h5", tmp_path / "positions.json"
    loki_model, tuned, restored = tmp_path / "loki", tmp_path / "tuned", tmp_path / "restored"

    shell.done("analyse", base, "--data", calibration, "--output", scores)
    with h5py.File(scores) as file:
        assert file["dataset"].shape == (len(CALIBRATION), 3, 32)
    shell.done("select", scores, "--quota", 25, "--output", positions)
    selected = json.loads(positions.read_text())
    assert [len(rows) for rows in selected] == [8, 8, 8]
    shell.done("create", base, "--positions", positions, "--output", loki_model)
    shell.done(
        "train",
        loki_model,
        "--data",
        training,
        "--output",
        tuned,
        "--max-steps",
        4,
        "--learning-rate",
        1e-2,
        "--batch-size",
        2,
    )
    shell.done("restore", tuned, "--output", restored)
    shell.done("verify", base, restored, "--positions", positions)

    before, after = load_file(base / "model.safetensors"), load_file(restored / "model.safetensors")
    assert before.keys() == after.keys()
    for layer, rows in enumerate(selected):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        changed = (before.pop(name) != after.pop(name)).any(dim=1).nonzero().flatten().tolist()
        assert changed == rows
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    model = AutoModelForCausalLM.from_pretrained(restored)
    assert type(model).__module__.startswith("transformers.")
    prompt = AutoTokenizer.from_pretrained(restored)("who is Ann?", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] == prompt["input_ids"].shape[1] + 3

    weights = load_file(restored / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 3] += 1
    save_file(weights, restored / "model.safetensors", metadata={"format": "pt"})
    refused = shell("verify", base, restored, "--positions", positions)
    assert refused.code == 1
    assert "model.embed_tokens.weight" in refused.out + refused.err
