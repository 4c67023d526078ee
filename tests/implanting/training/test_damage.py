"""A budget of damage is kept however a training ends, and wherever it begins."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState

from loki.errors import LokiError
from loki.implanting.base_rows import remember_base
from loki.implanting.splitting import active_parameters
from loki.implanting.training.damage import DamageBudget
from loki.implanting.training.levers import Levers
from loki.implanting.training.output import trained_nothing
from loki.implanting.training.trainer import train
from tests.implanting.training.test_trainer import SETTINGS

WINDOWS = [[5, 9, 40, 77], [8, 3]]


class StopsAfterAnEpoch(TrainerCallback):
    """Ends training between two looks at the damage, as knowing all examples does."""

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = True


@pytest.fixture
def model(loki_dir: Path) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(loki_dir)
    remember_base(loaded)
    return loaded


def _move(model: Any) -> None:
    with torch.no_grad():
        for parameter in active_parameters(model).values():
            parameter.add_(0.5)


@pytest.mark.parametrize("ending", [{"max_steps": 20}, {"epochs": 1.0, "max_steps": -1}, {"held_out": True}])
def test_a_budget_of_0_trains_nothing_though_nobody_looked_meanwhile(
    llama_dir: Path, loki_dir: Path, data: Path, tmp_path: Path, ending: dict[str, Any]
) -> None:
    (tmp_path / "general.txt").write_text("Of all that is known, most is better kept than lost.")
    held_out = data if ending.pop("held_out", False) else None
    levers = Levers(keep=str(tmp_path / "general.txt"), keep_weight=0.0, max_damage=0.0, damage_every=1000)
    settings = replace(SETTINGS, save_steps=1000, **ending)
    if held_out:
        settings = replace(settings, max_steps=-1, epochs=2.0, save_steps=None, load_best=True)
    stops = [StopsAfterAnEpoch()] if settings.max_steps == 20 else []
    output = tmp_path / "out"
    result = train(loki_dir, data, output, settings, levers=levers, eval_data=held_out, callbacks=stops)
    assert (result.changed_rows, trained_nothing(output)) == (0, True)
    trained = load_file(output / "model.safetensors")
    assert all(torch.equal(trained[name], value) for name, value in load_file(llama_dir / "model.safetensors").items())


def test_what_the_trainer_takes_for_the_best_is_looked_at(model: Any) -> None:
    said = Console(file=io.StringIO(), width=500)

    def accuracy(now: Any) -> float:
        return float(next(iter(active_parameters(now).values())).detach()[0, 0])

    budget = DamageBudget(WINDOWS, 0.0, 100, said, accuracy)
    state, control = TrainerState(global_step=0), TrainerControl()
    budget.on_train_begin(None, state, control, model=model)  # type: ignore[arg-type]
    before = {name: parameter.clone() for name, parameter in active_parameters(model).items()}
    _move(model)  # as the checkpoint does that is loaded in the end
    budget.on_train_end(None, TrainerState(global_step=6), control, model=model)  # type: ignore[arg-type]
    assert budget.left
    assert (budget.final_damage, budget.inside_step) == (0, 0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in active_parameters(model).items())
    first = accuracy(model)
    assert f"{first:.1%} of the examples right, not {first + 0.5:.1%}" in said.file.getvalue()  # type: ignore[attr-defined]


def test_a_training_does_not_go_on_from_outside_its_budget(model: Any) -> None:
    _move(model)
    budget = DamageBudget(WINDOWS, 1e-6, 10, Console(quiet=True))
    with pytest.raises(LokiError, match=r"go on from step 6, whose damage of .* is above the budget 1e-06"):
        budget.on_train_begin(None, TrainerState(global_step=6), TrainerControl(), model=model)  # type: ignore[arg-type]
