"""LoKI model directories load everywhere, train only the selected rows, and stay ordinary on disk."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.implanting.create import create_loki_model
from loki.implanting.linear import LoKILinear
from loki.implanting.modeling import loki_classes
from loki.implanting.splitting import active_parameters, check_trainable
from loki.models.architectures import LOKI_FAMILIES
from tests.programs import run_python
from tests.tiny_models import save_tiny_model, tiny_model

POSITIONS = [[1, 30], [], [0, 4, 5]]
TOKENS = torch.tensor([[5, 9, 40, 77, 123, 200]])


def make_directory(folder: Path, family: str, dtype: torch.dtype | None = None) -> tuple[Path, Path]:
    base = save_tiny_model(folder / "base", family)
    write_positions(folder / "positions.json", POSITIONS)
    made = create_loki_model(
        model_name=base, target_pos_path=folder / "positions.json", save_dir=folder / "loki", torch_dtype=dtype
    )
    return base, made


def train(model: PreTrainedModel, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", [*LOKI_FAMILIES, "olmo2", "gpt_neox", "falcon_h1"])
def test_load_train_save_reload(family: str, tmp_path: Path) -> None:
    base, made = make_directory(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(made)
    assert isinstance(model, loki_classes(family)[1])
    assert torch.equal(model(TOKENS).logits, AutoModelForCausalLM.from_pretrained(base)(TOKENS).logits)
    assert sum(isinstance(module, LoKILinear) for module in model.modules()) == 2
    rows = sum(parameter.shape[0] for name, parameter in active_parameters(model).items() if name.endswith("weight"))
    assert rows == 5
    check_trainable(model)

    train(model)
    model.save_pretrained(tmp_path / "checkpoint")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert torch.equal(reloaded(TOKENS).logits, model(TOKENS).logits)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert before.keys() == after.keys()
    assert sum(not torch.equal(tensor, after[name]) for name, tensor in before.items() if name.endswith("weight")) == 2


LOAD_WITHOUT_IMPORT = """
import sys
from transformers import AutoModelForCausalLM
assert not any(name == "loki" or name.startswith("loki.") for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
model.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
assert sum(parameter.numel() for parameter in again.parameters() if parameter.requires_grad) == trainable
print(trainable)
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_loads_with_remote_code_and_no_import(family: str, tmp_path: Path) -> None:
    _, made = make_directory(tmp_path, family)
    finished = run_python("-c", LOAD_WITHOUT_IMPORT, made, tmp_path / "again")
    trained = int(finished.stdout.splitlines()[-1])  # DeepSpeed, where it is installed, prints before
    assert trained == 5 * 48 if family == "llama" else trained > 0


@pytest.mark.slow
def test_without_trust_or_import_it_is_an_error_not_a_full_fine_tune(tmp_path: Path) -> None:
    _, made = make_directory(tmp_path, "llama")
    code = (
        f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(made)!r}, trust_remote_code=False)"
    )
    assert "trust_remote_code" in run_python("-c", code, code=1).stderr


def test_made_without_a_checkpoint() -> None:
    base = tiny_model("qwen2")
    config_class, model_class = loki_classes("qwen2")
    model = model_class(config_class(**{**base.config.to_dict(), "target_pos": POSITIONS}))
    check_trainable(model)
    model.load_state_dict(base.state_dict())
    assert torch.equal(model.eval()(TOKENS).logits, base(TOKENS).logits)


def test_gradient_checkpointing_with_frozen_embeddings(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_directory(tmp_path, "llama")[1])
    model.train()
    model(TOKENS, labels=TOKENS).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in active_parameters(model).items()}
    for reentrant in (True, False):
        model.zero_grad()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        model(TOKENS, labels=TOKENS).loss.backward()
        for name, parameter in active_parameters(model).items():
            assert torch.allclose(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_configuration_without_positions(tmp_path: Path) -> None:
    _, made = make_directory(tmp_path, "llama")
    config = json.loads((made / "config.json").read_text())
    del config["target_pos"]
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(LokiError, match="loki create"):
        AutoModelForCausalLM.from_pretrained(made)


def test_anything_else_trainable_is_found(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_directory(tmp_path, "llama")[1])
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(LokiError, match=r"lm_head\.weight is trainable"):
        check_trainable(model)
