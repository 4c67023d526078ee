"""What a GPU computes is what the CPU computes: attribution, moments, training, adapters, a whole run.

make test-gpu
"""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki import LoKIConfig
from loki.analysis.moments import measure_moments
from loki.analysis.options import MomentsSettings
from loki.implanting.linear import LoKILinear
from loki.implanting.splitting import active_parameters, split_rows
from loki.kva import AttributionSettings, make_attributor
from tests.implanting.test_protected_model import some_moments
from tests.programs import run_python
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [21, 22, 23], [41, 42, 43, 44, 45, 46]]
POSITIONS = [[1, 30], [], [0, 4, 5]]
WHOLE_GPU = {**os.environ, "OMP_NUM_THREADS": "4"}


def scores(model: PreTrainedModel, **changes: object) -> list[torch.Tensor]:
    with make_attributor(model, AttributionSettings(**changes)) as attributor:  # type: ignore[arg-type]
        return [found.scores.cpu() for found in attributor.attribute(PROMPTS, [None] * len(PROMPTS))]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "mixtral"])
@pytest.mark.parametrize("definition", ["captum", "paper", "sensitivity"])
def test_scores(family: str, definition: str) -> None:
    expected = scores(tiny_model(family), definition=definition)
    for found, wanted in zip(scores(tiny_model(family).to(DEVICE), definition=definition), expected, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("definition", ["captum", "paper"])
def test_scores_in_bfloat16_beside_captum(definition: str) -> None:
    """Both in bfloat16: what rounds differently is the order of the sums alone."""
    found = scores(tiny_model().to(DEVICE, torch.bfloat16), definition=definition, engine="fast")
    expected = scores(tiny_model().to(DEVICE, torch.bfloat16), definition=definition, engine="captum")
    for own, captums in zip(found, expected, strict=True):
        # Scores are differences of numbers that are rounded to 8 bits: twice the table's tolerance, for two roundings.
        assert float((own - captums).norm() / captums.norm()) <= 4e-2


def test_moments(llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words of a text\n" * 20)
    for device in ("cpu", DEVICE):
        settings = MomentsSettings(device=device, dtype="float32")
        measure_moments(llama_dir, str(tmp_path / "text.txt"), tmp_path / f"{device}.safetensors", settings)
    expected = load_file(tmp_path / "cpu.safetensors")
    found = load_file(tmp_path / f"{DEVICE}.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_split_layer(dtype: torch.dtype) -> None:
    """Output and gradients of a LoKILinear are those of the whole layer with its other rows' gradients left out."""
    torch.manual_seed(0)
    whole = nn.Linear(96, 64, bias=True, device=DEVICE, dtype=dtype)
    rows = [3, 17, 40, 63]
    split = LoKILinear(nn.Linear(96, 64, bias=True, device=DEVICE, dtype=dtype).requires_grad_(False), rows)
    split.load_state_dict({"weight": whole.weight.detach(), "bias": whole.bias.detach()}, strict=False)
    split.split()
    x = torch.randn(5, 7, 96, device=DEVICE, dtype=dtype)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(5, 7, 64, device=DEVICE, dtype=dtype)
    out, expected = split(mine), whole(theirs)
    out.backward(upstream)
    expected.backward(upstream)
    assert_close(out, expected, dtype)
    assert_close(mine.grad, theirs.grad, dtype)  # type: ignore[arg-type]
    assert_close(split.active_weight.grad.to(dtype), whole.weight.grad[rows], dtype)  # type: ignore[union-attr, index]


@pytest.mark.parametrize("kind", ["rows", "rank", "protect"])
def test_an_adapter_is_trained_merged_and_switched_off(llama_dir: Path, tmp_path: Path, kind: str) -> None:
    moments = some_moments(tmp_path / "moments.safetensors", llama_dir)
    changes = {"rows": {}, "rank": {"rank": 2}, "protect": {"protect": 0.5, "moments": moments}}[kind]
    base = AutoModelForCausalLM.from_pretrained(llama_dir).to(DEVICE)
    tokens = torch.tensor([[5, 9, 40, 77]], device=DEVICE)
    before = base(tokens).logits.detach()
    model = peft.get_peft_model(base, LoKIConfig(positions=POSITIONS, **changes))
    assert torch.equal(model(tokens).logits, before)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16):
            model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model(tokens).logits.detach()
    assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(model(tokens).logits, before)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    assert_close(merged(tokens).logits, after)
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llama_dir).to(DEVICE), tmp_path / "adapter"
    )
    assert_close(again(tokens).logits, after)


def test_only_active_rows_change() -> None:
    model = tiny_model().to(DEVICE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split_rows(model, POSITIONS)
    tokens = torch.tensor([[5, 9, 40, 77, 123, 200]], device=DEVICE)
    optimizer = torch.optim.AdamW(active_parameters(model).values(), lr=0.01, fused=True)
    for _ in range(3):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    for name, tensor in before.items():
        changed = (after[name] != tensor).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
        expected = POSITIONS[int(name.split(".")[2])] if name.endswith("down_proj.weight") else []
        assert changed == expected, name


def test_a_whole_run_in_a_process_of_its_own(llama_dir: Path, tmp_path: Path) -> None:
    """Analysis, training under bfloat16 autocast, restoring and the proof; then the same run, resumed, to the bit."""
    (tmp_path / "questions.jsonl").write_text('{"prompt": "once upon"}\n{"prompt": "two and two"}\n')
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n' * 8)
    files = ("--data", tmp_path / "train.jsonl", "--calibration", tmp_path / "questions.jsonl")
    words = ("-m", "loki", "run", llama_dir, *files, "--quota", 25, "--learning-rate", 1e-2, "--save-steps", 2)
    told = run_python(*words, "--max-steps", 6, "--output", tmp_path / "run", "--json", environment=WHOLE_GPU)
    said = json.loads(told.stdout.splitlines()[-1])
    assert said["changed_rows"] == said["selected_rows"] == 24
    run_python("-m", "loki", "verify", llama_dir, tmp_path / "run" / "restored", "--positions",
               tmp_path / "run" / "positions.json", environment=WHOLE_GPU)  # fmt: skip
    with h5py.File(tmp_path / "run" / "scores.h5") as file:
        assert np.isfinite(file["dataset"][:]).all()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "restored")
    base = AutoModelForCausalLM.from_pretrained(llama_dir)
    tokens = torch.tensor([[5, 9, 40, 77]])
    assert not torch.equal(model(tokens).logits, base(tokens).logits)
    assert_close(model.to(DEVICE)(tokens.to(DEVICE)).logits.cpu(), model.to("cpu")(tokens).logits)
