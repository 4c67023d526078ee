"""What a step of training minimises: every token's loss alike, or times its probability."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loki.artefacts.training_settings import Loss, Scheduler, TrainingSettings
from loki.errors import LokiError
from loki.implanting.splitting import active_parameters
from loki.implanting.training.material import read_material
from loki.implanting.training.trainer import train
from tests.implanting.training.conftest import POSITIONS
from tests.implanting.training.test_trainer import SETTINGS
from tests.tolerances import assert_close


def _by_hand(loki_dir: Path, data: Path, settings: TrainingSettings) -> list[torch.Tensor]:
    """The active rows after steps of AdamW on all examples at once, their losses written out."""
    model = AutoModelForCausalLM.from_pretrained(loki_dir)
    material = read_material(
        loki_dir, data, positions=None, eval_data=None, max_length=settings.max_length, seed=settings.seed
    )
    parameters = list(active_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=float(settings.learning_rate), weight_decay=0.0)
    for _ in range(settings.max_steps):
        terms = []
        for example in material.examples.dataset.to_list():
            log_probabilities = model(torch.tensor([example["input_ids"]])).logits[0, :-1].log_softmax(-1)
            for place, token in enumerate(example["input_ids"][1:]):
                if example["completion_mask"][place + 1]:
                    log_probability = log_probabilities[place, token]
                    weight = log_probability.detach().exp() if settings.loss is Loss.DFT else 1.0
                    terms.append(-weight * log_probability)
        optimizer.zero_grad()
        torch.stack(terms).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("loss", [Loss.NLL, Loss.DFT])
def test_rows_are_those_of_the_loss_written_out(loki_dir: Path, data: Path, tmp_path: Path, loss: Loss) -> None:
    settings = replace(
        SETTINGS, loss=loss, max_steps=2, batch_size=16, warmup=0.0, scheduler=Scheduler.CONSTANT, learning_rate=1e-3
    )
    train(loki_dir, data, tmp_path / "out", settings)
    trained = load_file(tmp_path / "out" / "model.safetensors")
    expected = dict(zip([0, 2], _by_hand(loki_dir, data, settings), strict=True))
    base = load_file(loki_dir / "model.safetensors")
    for layer, rows in expected.items():
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        before = base[name][POSITIONS[layer]]
        # The change alone, which is small beside the weights: rounding to float32 weighs the more on it.
        assert_close(trained[name][POSITIONS[layer]] - before, rows - before, torch.float16)
        assert_close(trained[name][POSITIONS[layer]], rows)


@pytest.mark.parametrize("loss", [Loss.ASFT, Loss.EAFT])
def test_losses_of_llamafactory_are_left_to_it(loki_dir: Path, data: Path, tmp_path: Path, loss: Loss) -> None:
    with pytest.raises(LokiError, match=f"--loss {loss} needs --backend llamafactory"):
        train(loki_dir, data, tmp_path / "out", replace(SETTINGS, loss=loss))
    assert not (tmp_path / "out").exists()


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(LokiError, match=r"--loss hinge .*nll, dft"):
        TrainingSettings(loss="hinge")  # type: ignore[arg-type]
