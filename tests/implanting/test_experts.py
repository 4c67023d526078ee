"""Rows of every expert, trained: only they change, and they get the gradient that the whole weight would give them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from loki import create_loki_model
from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.implanting.experts import LoKIExperts
from loki.implanting.splitting import active_parameters, split_rows
from loki.models.experts import layer_rows
from loki.models.loading import load_model
from tests.tiny_models import save_tiny_model, tiny_model
from tests.tolerances import assert_close

POSITIONS = [[1, 30], [2], [0, 4, 5]]
# Square in GPT-OSS, where no shape tells which dimension the rows lie along.
CHANGES = {"gpt_oss": {"intermediate_size": 32}, "qwen3_moe": {}, "deepseek_v3": {}, "mixtral": {}, "llama4_text": {}}
IDS = torch.tensor([[5, 9, 40, 77, 123, 8, 200, 3]])


def split(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model, and the same one with rows of all its experts split off."""
    original, model = tiny_model(family, **CHANGES[family]), tiny_model(family, **CHANGES[family])
    for one in (original, model):
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if name.endswith("down_proj_bias"):
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    split_rows(model, POSITIONS, "all")
    return original, model


def experts_of(model: PreTrainedModel) -> Iterator[tuple[int, nn.Module, int]]:
    for layer, rows in enumerate(layer_rows(model, "all")):
        if rows.experts is not None:
            yield layer, rows.experts.module, rows.experts.axis


@pytest.mark.parametrize("family", CHANGES)
def test_outputs_are_the_same_to_the_last_bit_before_training(family: str) -> None:
    original, model = split(family)
    assert torch.equal(model(input_ids=IDS).logits, original(input_ids=IDS).logits)
    before, after = original.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", CHANGES)
def test_gradients_are_those_of_the_rows_in_the_whole_weight(family: str) -> None:
    original, model = split(family)
    original(input_ids=IDS, labels=IDS).loss.backward()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert {name for name, part in model.named_parameters() if part.requires_grad} == set(active_parameters(model))
    checked = 0
    for (layer, module, axis), (_, whole, _) in zip(experts_of(model), experts_of(original), strict=True):
        assert isinstance(module, LoKIExperts)
        for name, dimension in (("down_proj", axis), ("down_proj_bias", 1)):
            held: Any = whole._parameters.get(name)
            if held is None:
                continue
            expected = held.grad.movedim(dimension, 1)[:, POSITIONS[layer]].flatten(0, 1)
            active = module.active_weight if name == "down_proj" else module.active_bias
            assert active is not None and active.grad is not None
            assert_close(active.grad, expected, torch.float32)
            checked += 1
    assert checked


@pytest.mark.parametrize("family", CHANGES)
def test_a_change_moves_the_outputs_of_the_selected_rows_alone(family: str) -> None:
    """In the output of every expert, which is what tells rows from columns."""
    original, model = split(family)
    seen: dict[str, dict[int, torch.Tensor]] = {"before": {}, "after": {}}
    for name, one in (("before", original), ("after", model)):
        for layer, module, _ in experts_of(one):
            if isinstance(module, LoKIExperts):
                with torch.no_grad():
                    module.active_weight += 0.5
            # Of the first layer that has some, so that both models' experts see the same input.
            module.register_forward_hook(
                lambda _, __, output, name=name, layer=layer: seen[name].__setitem__(layer, output)
            )
        one(input_ids=IDS)
    first = min(seen["before"])
    different = (seen["before"][first] != seen["after"][first]).flatten(0, -2).any(dim=0).nonzero().flatten().tolist()
    assert different == POSITIONS[first]
    for layer, module, axis in experts_of(model):
        whole = next(found for number, found, _ in experts_of(original) if number == layer)._parameters["down_proj"]
        assert whole is not None
        changed = (model.state_dict()[_name(model, module)] != whole).movedim(axis, 0).flatten(1)
        assert changed.any(dim=1).nonzero().flatten().tolist() == POSITIONS[layer]
        assert changed[POSITIONS[layer]].all()


def test_the_base_can_be_shown_and_rows_are_loaded() -> None:
    original, model = split("gpt_oss")
    module = next(module for _, module, _ in experts_of(model))
    assert isinstance(module, LoKIExperts)
    module.remember_base()
    with torch.no_grad():
        module.active_weight += 0.5
    changed = model(input_ids=IDS).logits
    module.show_base(True)
    assert torch.equal(model(input_ids=IDS).logits, original(input_ids=IDS).logits)
    module.show_base(False)
    assert torch.equal(model(input_ids=IDS).logits, changed)
    model.load_state_dict(original.state_dict(), strict=False)
    assert torch.equal(model(input_ids=IDS).logits, original(input_ids=IDS).logits)


def test_a_directory_holds_the_choice(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "qwen3_moe")
    write_positions(tmp_path / "positions.json", POSITIONS)
    create_loki_model(
        model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki", experts="all"
    )
    model = load_model(tmp_path / "loki")
    assert model.config.experts == "all"
    assert sum(isinstance(module, LoKIExperts) for module in model.modules()) == 3
    with pytest.raises(LokiError, match="--experts all"):
        create_loki_model(model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "other")


def test_the_text_model_of_llama_4_in_its_wrapper(tmp_path: Path) -> None:
    """In releases where the wrapper asks its text model for images, it computes nothing."""
    base = save_tiny_model(tmp_path / "base", "llama4")
    write_positions(tmp_path / "positions.json", POSITIONS)
    create_loki_model(
        model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki", experts="shared"
    )
    model: Any = load_model(tmp_path / "loki")
    assert torch.equal(model(input_ids=IDS).logits, load_model(base)(input_ids=IDS).logits)
    # What trainers take for the decoder under the head.
    hidden = model.base_model(input_ids=IDS).last_hidden_state
    assert_close(model.get_output_embeddings()(hidden), model(input_ids=IDS).logits, torch.float32)


def _name(model: PreTrainedModel, module: nn.Module) -> str:
    return next(f"{name}.down_proj" for name, found in model.named_modules() if found is module)
