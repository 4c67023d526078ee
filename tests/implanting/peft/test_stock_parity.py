"""LoKI against stock PEFT methods that can train the same rows, step by step."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from torch import nn

from loki.implanting.peft import LoKIConfig
from loki.models.experts import down_projections
from tests.tiny_models import tiny_model

ROWS = [0, 5, 6, 30]
POSITIONS = [ROWS] * 3
PROMPTS = torch.randint(0, 320, (2, 12), generator=torch.Generator().manual_seed(0))


def train(
    model: nn.Module, optimiser: str, learning_rate: float, after_backward: Callable[[], None] = lambda: None
) -> list[float]:
    """Four steps without weight decay; the losses."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step = {
        "sgd": lambda: torch.optim.SGD(trained, lr=learning_rate, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, eps=1e-6),
    }[optimiser]()
    losses = []
    for _ in range(4):
        loss = model(PROMPTS, labels=PROMPTS).loss
        loss.backward()
        after_backward()
        step.step()
        step.zero_grad()
        losses.append(loss.item())
    return losses


def updates(merged: nn.Module) -> torch.Tensor:
    """How training changed the projections, `[layers, rows, columns]`."""
    before, after = (down_projections(model).values() for model in (tiny_model(), merged))
    return torch.stack([new.weight.detach() - old.weight.detach() for new, old in zip(after, before, strict=True)])


def assert_same_training(ours: PeftModel, our_losses: list[float], stock: nn.Module, stock_losses: list[float]) -> None:
    assert our_losses == pytest.approx(stock_losses, abs=1e-6)
    assert our_losses[0] - our_losses[-1] > 0.01, "nothing was learned, so nothing was compared"
    update, expected = updates(ours.merge_and_unload()), updates(stock)
    assert (update - expected).abs().max() <= 1e-6
    assert update.any(dim=2).nonzero()[:, 1].tolist() == 3 * ROWS


@pytest.mark.parametrize(("optimiser", "rate"), [("sgd", 0.1), ("adamw", 1e-3)])
def test_full_rows_train_as_stock_trainable_tokens_of_the_same_rows(optimiser, rate):
    ours = get_peft_model(tiny_model(), LoKIConfig(positions=POSITIONS))
    our_losses = train(ours, optimiser, rate)
    # PEFT means rows of an embedding or a head; on a Linear it replaces and trains exactly the rows it is given.
    stock = get_peft_model(tiny_model(), TrainableTokensConfig(token_indices=ROWS, target_modules=["down_proj"]))
    assert stock.get_nb_trainable_parameters()[0] == ours.get_nb_trainable_parameters()[0]
    stock_losses = train(stock, optimiser, rate)
    assert_same_training(ours, our_losses, stock.merge_and_unload(), stock_losses)


@pytest.mark.parametrize(("optimiser", "rate"), [("sgd", 2.0), ("adamw", 2e-2)])
def test_a_rank_trains_as_stock_lora_with_the_other_rows_held_at_zero(optimiser, rate):
    ours = get_peft_model(tiny_model(), LoKIConfig(positions=POSITIONS, rank=2))
    stock = get_peft_model(tiny_model(), LoraConfig(r=2, lora_alpha=2, target_modules=["down_proj"]))
    same_start = {
        name.replace("loki_A", "lora_A"): value for name, value in ours.state_dict().items() if "loki_A" in name
    }
    stock.load_state_dict(same_start, strict=False)
    others = [row for row in range(32) if row not in ROWS]

    def hold_other_rows() -> None:
        for name, parameter in stock.named_parameters():
            if "lora_B" in name:
                parameter.grad[others] = 0

    our_losses = train(ours, optimiser, rate)
    stock_losses = train(stock, optimiser, rate, hold_other_rows)
    assert_same_training(ours, our_losses, stock.merge_and_unload(), stock_losses)
