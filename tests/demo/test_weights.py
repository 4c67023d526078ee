"""The shipped model is an ordinary, small model directory, and it really knows the tiny world."""

from pathlib import Path

import pytest
import torch

from loki.demo.build import REQUIRED_ACCURACY, WEIGHTS, build, world_config
from loki.demo.tokenizer import world_tokenizer
from loki.demo.world import NEW_PEOPLE, OLD_FAMILIES, tiny_world
from loki.errors import CheckFailed
from loki.metrics.accuracy import accuracy_by_family
from loki.models.loading import load_model, load_tokenizer


def test_knows_every_old_family_and_not_the_new_facts() -> None:
    world = tiny_world()
    accuracy = accuracy_by_family(load_model(WEIGHTS), load_tokenizer(WEIGHTS), [*world.old, *world.new])
    assert tuple(accuracy) == (*OLD_FAMILIES, NEW_PEOPLE)
    assert min(accuracy[family] for family in OLD_FAMILIES) >= REQUIRED_ACCURACY
    assert accuracy[NEW_PEOPLE] < 0.25  # guessing one of 12 values: 0.08


def test_is_small_and_of_the_shape_that_the_build_script_makes() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 8 * 2**20
    model = load_model(WEIGHTS)
    expected = world_config(world_tokenizer())
    assert model.dtype == torch.float32
    assert model.config.vocab_size == expected.vocab_size
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (4, 128)
    assert load_tokenizer(WEIGHTS).get_vocab() == world_tokenizer().get_vocab()


@pytest.mark.slow
def test_build_saves_nothing_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="below"):
        build(tmp_path / "weights", steps=2)
    assert not list(tmp_path.iterdir())
