"""Rows train while the frozen weights are quantised; what is saved is not, and only the rows differ."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

from loki.artefacts.positions import write_positions
from loki.artefacts.training_settings import TrainingSettings
from loki.errors import LokiError
from loki.implanting.create import create_loki_model
from loki.implanting.training.quantised import load_to_train
from loki.implanting.training.trainer import train
from loki.models.loading import load_config
from tests.programs import run_python
from tests.tiny_models import save_tiny_model

pytest.importorskip("bitsandbytes")

POSITIONS = [[1, 2], [], [40]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return save_tiny_model(folder / "base", "llama", hidden_size=64, intermediate_size=128)


@pytest.fixture
def loki_model(base: Path, tmp_path: Path) -> Path:
    write_positions(tmp_path / "positions.json", POSITIONS)
    return create_loki_model(
        model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki_model"
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    record = {"prompt": "2 + 2 =", "completion": " 4"}
    (tmp_path / "train.jsonl").write_text((json.dumps(record) + "\n") * 4)
    return tmp_path / "train.jsonl"


@pytest.mark.parametrize("bits", [4, 8])
def test_everything_but_rows_and_head_is_quantised(loki_model: Path, bits: int) -> None:
    model = load_to_train(load_config(loki_model), loki_model, TrainingSettings(**{f"load_in_{bits}bit": True}))
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    quantised = {name for name, kind in kinds.items() if kind.startswith("Linear") and kind != "Linear"}
    assert {kinds["model.layers.0.mlp.down_proj"], kinds["model.layers.2.mlp.down_proj"]} == {"LoKILinear"}
    assert kinds["lm_head"] == "Linear"
    assert "model.layers.1.mlp.down_proj" in quantised
    assert len(quantised) == 3 * 6 + 1
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * 128


@pytest.mark.parametrize("bits", [4, 8])
def test_the_trained_model_is_the_base_but_for_the_rows(
    base: Path, loki_model: Path, data: Path, tmp_path: Path, bits: int
) -> None:
    settings = TrainingSettings(max_steps=4, learning_rate=1e-2, save_steps=2, **{f"load_in_{bits}bit": True})
    result = train(loki_model, data, tmp_path / "trained", settings)
    assert result.changed_rows == 3
    assert result.learned is not None
    assert result.learned.after.trained.loss < result.learned.before.trained.loss
    before = load_file(base / "model.safetensors")
    for folder in (tmp_path / "trained", tmp_path / "trained/checkpoint-2"):
        after = load_file(folder / "model.safetensors")
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            layer = int(name.split(".")[2]) if "down_proj" in name else 1
            kept = [row for row in range(len(tensor)) if row not in POSITIONS[layer]]
            assert torch.equal(after[name][kept], tensor[kept]), name
            assert not POSITIONS[layer] or not torch.equal(after[name], tensor)
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    run_python("-m", "loki", "restore", tmp_path / "trained", "--output", tmp_path / "restored")
    run_python("-m", "loki", "verify", base, tmp_path / "restored", "--positions", tmp_path / "positions.json")


class Interrupts(TrainerCallback):
    """Stops the third step as a user would."""

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_it_resumes_exactly(loki_model: Path, data: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(max_steps=4, learning_rate=1e-2, save_steps=2, load_in_4bit=True)
    train(loki_model, data, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train(loki_model, data, tmp_path / "resumed", settings, callbacks=[Interrupts()])
    assert (tmp_path / "resumed/checkpoint-2").is_dir()
    train(loki_model, data, tmp_path / "resumed", settings)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_best_checkpoint_is_put_back(loki_model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 5"}\n')
    settings = TrainingSettings(
        max_steps=4, learning_rate=3e-2, warmup=0, save_steps=1, load_in_4bit=True, load_best=True
    )
    train(loki_model, data, tmp_path / "trained", settings, eval_data=tmp_path / "held.jsonl")
    state = json.loads((tmp_path / "trained/trainer_state.json").read_text())
    best = load_file(Path(state["best_model_checkpoint"]) / "model.safetensors")
    final = load_file(tmp_path / "trained/model.safetensors")
    assert all(torch.equal(final[name], tensor) for name, tensor in best.items())


def test_bad_combinations(loki_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LokiError, match="exclude each other"):
        TrainingSettings(load_in_4bit=True, load_in_8bit=True)
    monkeypatch.setattr("loki.implanting.training.quantised.find_spec", lambda name: None)
    with pytest.raises(LokiError, match="pip install bitsandbytes"):
        train(loki_model, data, tmp_path / "trained", TrainingSettings(max_steps=1, load_in_8bit=True))
    assert not (tmp_path / "trained").exists()


def test_rows_of_all_experts_are_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "mixtral")
    write_positions(tmp_path / "positions.json", [[1, 2], [], [3]])
    made = create_loki_model(
        model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki_model", experts="all"
    )
    with pytest.raises(LokiError, match=r"--load-in-4bit .*--experts all"):
        load_to_train(load_config(made), made, TrainingSettings(load_in_4bit=True))
