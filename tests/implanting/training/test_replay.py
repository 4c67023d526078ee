"""General examples that are mixed into training."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from loki.data.fitting import TrainingData
from loki.errors import LokiError
from loki.implanting.training.levers import Levers
from loki.implanting.training.replay import Replay
from loki.implanting.training.trainer import train
from tests.implanting.training.test_trainer import SETTINGS

QUIET = Console(quiet=True)


@pytest.fixture
def general(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"The sum of {number} and nothing is itself."}) for number in range(4)]
    (tmp_path / "general.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "general.jsonl"


def _examples(count: int, first: int) -> Dataset:
    return Dataset.from_dict({"input_ids": [[first + n, 1] for n in range(count)], "completion_mask": [[0, 1]] * count})


def _replay(general: int, fraction: float, seed: int = 0) -> Replay:
    return Replay(TrainingData(_examples(general, 1000), [], {}, {}, [], 0, 0, ""), fraction, seed)


@settings(max_examples=30)
@given(st.integers(1, 60), st.floats(0.01, 0.5), st.integers(0, 5))
def test_their_share_is_the_fraction(examples: int, fraction: float, seed: int) -> None:
    replay, new = _replay(60, fraction, seed), _examples(examples, 0)
    mixed = [ids[0] for ids in replay.mixed(new, QUIET)["input_ids"]]
    assert mixed[:examples] == list(range(examples))
    drawn = mixed[examples:]
    assert len(set(drawn)) == len(drawn) == replay.added(examples)
    assert all(1000 <= token < 1060 for token in drawn)
    # As near to the fraction as whole examples come.
    assert abs(len(drawn) - fraction * len(mixed)) <= 0.5 or len(drawn) == 1
    assert [ids[0] for ids in replay.mixed(new, QUIET)["input_ids"]] == mixed


def test_too_few_are_not_repeated() -> None:
    with pytest.raises(LokiError, match=r"--replay has 3 examples.* 0\.5 of 10 .*needs 10"):
        _replay(3, 0.5).mixed(_examples(10, 0), QUIET)


def test_it_is_training_on_both_files_to_the_last_bit(
    loki_dir: Path, data: Path, general: Path, tmp_path: Path
) -> None:
    # All four general examples beside sixteen new ones.
    train(loki_dir, data, tmp_path / "replayed", SETTINGS, levers=Levers(replay=str(general), replay_fraction=0.2))
    (tmp_path / "both.jsonl").write_text(data.read_text() + general.read_text())
    train(loki_dir, tmp_path / "both.jsonl", tmp_path / "both", SETTINGS)
    train(loki_dir, data, tmp_path / "plain", SETTINGS)
    replayed, both, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("replayed", "both", "plain"))
    assert all(torch.equal(tensor, both[name]) for name, tensor in replayed.items())
    assert not all(torch.equal(tensor, plain[name]) for name, tensor in replayed.items())


def test_bad_replays(loki_dir: Path, data: Path, general: Path, tmp_path: Path) -> None:
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(LokiError, match=f"--replay-fraction {fraction}"):
            Levers(replay=str(general), replay_fraction=fraction)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "wrong.jsonl").write_text('{"question": 1}\n')
    output = tmp_path / "out"
    for name in ("empty.jsonl", "wrong.jsonl", "absent.jsonl"):
        with pytest.raises(LokiError, match=name):
            train(loki_dir, data, output, SETTINGS, levers=Levers(replay=str(tmp_path / name)))
    with pytest.raises(LokiError, match="--replay has 4 examples"):
        train(loki_dir, data, output, SETTINGS, levers=Levers(replay=str(general), replay_fraction=0.9))
    assert not output.exists()


def test_replayed_data_in_the_output_is_not_removed(loki_dir: Path, data: Path, general: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained"
    output.mkdir()
    inside = general.rename(output / "general.jsonl")
    with pytest.raises(LokiError, match=r"general\.jsonl"):
        train(loki_dir, data, output, SETTINGS, levers=Levers(replay=str(inside)), overwrite=True)
    assert inside.is_file()
