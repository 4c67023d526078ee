"""The search for a learning rate: it finds one that learns, leaves no trace, and is not repeated."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki.artefacts.training_settings import TrainingSettings
from loki.errors import LokiError
from loki.implanting.splitting import active_parameters, exact_rows, split_rows
from loki.implanting.training import rate_search
from loki.implanting.training.damage import damage_since
from loki.implanting.training.encoded import IGNORED_LABEL, Encoded, collate, sample
from loki.implanting.training.learned import Learned, Measured, Snapshot, measure
from loki.implanting.training.planning import LEAST_STEPS
from loki.implanting.training.rate_search import RateSearch, search_rate
from loki.implanting.training.trainer import train, tune
from loki.implanting.training.tryout import Trial
from tests.tiny_models import tiny_model
from tests.tolerances import RELATIVE_ERROR

EXAMPLES = [Encoded([3, 10 + n, 40, 90 + (7 * n) % 16, 1], [False, False, False, True, True]) for n in range(12)]
SETTINGS = TrainingSettings(batch_size=4)


@pytest.fixture
def model() -> PreTrainedModel:
    made = tiny_model(dtype=torch.bfloat16)
    split_rows(made, [list(range(8))] * 3)
    return made


def test_measure_is_the_loss_of_the_answers_and_how_many_are_exact(model: PreTrainedModel) -> None:
    model = tiny_model()
    found = measure(model, EXAMPLES, batch_size=5)
    losses, right = [], []
    for example in EXAMPLES:
        logits = model(torch.tensor([example.ids])).logits[0]
        steps = [index for index, trained in enumerate(example.trained) if trained]
        losses += [-torch.log_softmax(logits[index - 1].detach(), -1)[example.ids[index]] for index in steps]
        right.append(all(int(logits[index - 1].argmax()) == example.ids[index] for index in steps))
    assert found.loss == pytest.approx(float(torch.stack(losses).mean()), rel=RELATIVE_ERROR[torch.float32])
    assert (found.exact, found.examples) == (sum(right) / 12, 12)


def test_padding_is_neither_seen_nor_trained() -> None:
    batch = collate([Encoded([5, 6, 7], [False, True, True]), Encoded([8], [True])], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED_LABEL, 6, 7], [8, IGNORED_LABEL, IGNORED_LABEL]]


def test_sample_is_spread_and_no_larger_than_asked_for() -> None:
    assert sample(EXAMPLES, most=3) == [EXAMPLES[0], EXAMPLES[4], EXAMPLES[8]]
    assert len(sample(EXAMPLES, tokens=20)) == 4
    assert len(sample(EXAMPLES, tokens=1)) == 1


def test_the_rate_learns_and_the_rows_are_as_before(model: PreTrainedModel) -> None:
    before = {name: parameter.detach().float() for name, parameter in active_parameters(model).items()}
    chance = torch.random.get_rng_state()
    found = search_rate(model, EXAMPLES, None, SETTINGS)
    assert all(torch.equal(parameter, before[name]) for name, parameter in active_parameters(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert not model.training
    assert found.best.loss < 0.7 * found.loss
    first = [trial for trial in found.trials if trial.steps == 12]
    assert found.learning_rate not in (max(first, key=lambda trial: trial.loss).learning_rate, rate_search.RATES[0])
    assert RateSearch.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert search_rate(model, EXAMPLES, None, SETTINGS).trials == found.trials


class NeverBeyond(Progress):
    """A progress with no more done than there is to do."""

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        task = self._tasks[task_id]
        assert task.total is not None
        assert task.completed <= task.total


def test_rates_beyond_the_grid_are_tried_where_the_best_is_its_edge(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_search, "RATES", (1e-6, 3e-6))
    found = search_rate(model, EXAMPLES, None, SETTINGS, progress=NeverBeyond(console=Console(quiet=True)))
    assert found.learning_rate > 3e-6
    monkeypatch.setattr(rate_search, "RATES", (1e3, 3e3))
    assert search_rate(model, EXAMPLES, None, SETTINGS).learning_rate < 1e3


def test_of_equal_rates_the_one_with_the_lower_held_out_loss(
    monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel
) -> None:
    outcomes = {1e-4: (2.0, 3.0), 1e-3: (0.2, 2.5), 1e-2: (0.1, 4.0), 1e-1: (math.inf, math.inf)}
    monkeypatch.setattr(rate_search, "RATES", tuple(outcomes))
    monkeypatch.setattr(rate_search.Tryout, "losses", lambda self: (3.0, 3.0))
    monkeypatch.setattr(rate_search.Tryout, "attempt", lambda self, rate, steps: Trial(rate, steps, *outcomes[rate]))
    assert search_rate(model, EXAMPLES * 3, EXAMPLES, SETTINGS).learning_rate == 1e-3
    outcomes[1e-3] = (1.0, 2.5)  # learned much less
    assert search_rate(model, EXAMPLES * 3, EXAMPLES, SETTINGS).learning_rate == 1e-2


@pytest.mark.parametrize(
    ("held_out", "length", "rate", "tried"),
    [
        (None, {}, 1e-4, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]),
        (EXAMPLES, {}, 1e-3, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]),
        (None, {"max_steps": 71}, 1e-2, [1e-1, 1e-2]),
        (None, {"max_steps": 72}, 1e-4, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]),
        (None, {"epochs": 3}, 1e-2, [1e-1, 1e-2]),
    ],
)
def test_smaller_rates_follow_as_long_as_they_learn_as_much(
    model: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    held_out: list[Encoded] | None,
    length: dict[str, int],
    rate: float,
    tried: list[float],
) -> None:
    # By rate: the loss after 12 and after 36 steps, and the loss on held-out examples.
    outcomes = {1e-5: (3.0, 2.9, 2.9), 1e-4: (2.9, 0.3, 2.5), 1e-3: (2.0, 0.2, 2.4), 1e-2: (1.0, 0.1, 2.6)}
    outcomes[1e-1] = (1.1, 0.2, 3.0)
    monkeypatch.setattr(rate_search, "RATES", tuple(outcomes))
    monkeypatch.setattr(rate_search.Tryout, "losses", lambda self: (3.0, None if held_out is None else 3.0))
    monkeypatch.setattr(rate_search, "_parts", lambda *_: (EXAMPLES, held_out))
    attempted = []

    def attempt(self: rate_search.Tryout, rate: float, steps: int) -> Trial:
        first, second, other = outcomes[rate]
        if steps == 36:
            attempted.append(rate)
        return Trial(rate, steps, first if steps == 12 else second, None if held_out is None else other)

    monkeypatch.setattr(rate_search.Tryout, "attempt", attempt)
    found = search_rate(model, EXAMPLES, held_out, replace(SETTINGS, **length))
    assert found.learning_rate == rate
    assert sorted(attempted, reverse=True) == tried


def test_rates_beyond_the_budget_of_damage_come_last(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_search, "RATES", (1e-4, 1e-3, 1e-2))
    general = [[0, 5, 9, 40, 77], [0, 200, 3]]
    settings = replace(SETTINGS, rate_damage=1e9)
    free = search_rate(model, EXAMPLES, None, settings, general=general)
    base = {name: tensor.clone() for name, tensor in exact_rows(model).items()}
    assert damage_since(model, base, general) == pytest.approx(0, abs=1e-6), "the rows are as before"
    costs = {trial.learning_rate: trial.damage for trial in free.trials if trial.steps == 12}
    assert 0 < costs[1e-4] < costs[1e-3] < costs[1e-2]
    assert free.learning_rate >= 1e-3
    held = search_rate(model, EXAMPLES, None, replace(settings, rate_damage=3 * costs[1e-4]), general=general)
    assert held.best.damage <= 3 * costs[1e-4]
    assert held.learning_rate < free.learning_rate
    monkeypatch.setattr(rate_search, "_EXTENSIONS", 0)
    with pytest.raises(LokiError, match="--rate-damage 1e-12"):
        search_rate(model, EXAMPLES, None, replace(settings, rate_damage=1e-12), general=general)


def test_a_budget_is_for_rates_that_are_found() -> None:
    for wrong in ({"rate_damage": 0.0}, {"rate_damage": math.nan}, {"rate_damage": 0.1, "learning_rate": 1e-3}):
        with pytest.raises(LokiError, match="--rate-damage"):
            TrainingSettings(**wrong)


def test_an_interrupted_search_goes_on(
    loki_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, made = rate_search.Tryout.attempt, []

    def counted(self: rate_search.Tryout, rate: float, steps: int) -> Trial:
        if len(made) == 2:
            made.append(None)
            raise KeyboardInterrupt
        made.append((rate, steps))
        return attempt(self, rate, steps)

    monkeypatch.setattr(rate_search.Tryout, "attempt", counted)
    settings = TrainingSettings(batch_size=8, max_steps=2, rate_damage=1e9)
    with pytest.raises(KeyboardInterrupt):
        tune(loki_dir, data, tmp_path / "out", settings)
    found = tune(loki_dir, data, tmp_path / "out", settings)
    tries = [each for each in made if each]
    assert len(tries) == len(set(tries)) == len(found.trials)
    whole = tune(loki_dir, data, tmp_path / "whole", settings)
    assert (found.trials, found.learning_rate) == (whole.trials, whole.learning_rate)
    before = len(made)
    trained = train(loki_dir, data, tmp_path / "out", settings)
    assert (trained.search, len(made)) == (found, before), "training goes on with what was found"
    with pytest.raises(LokiError, match="leaves nothing to find"):
        tune(loki_dir, data, tmp_path / "more", TrainingSettings(learning_rate=1e-3))


@pytest.mark.slow
def test_training_with_the_found_rate_is_training_with_that_rate(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    found = train(loki_dir, data, tmp_path / "auto", replace(SETTINGS, max_steps=3))
    given = train(loki_dir, data, tmp_path / "given", replace(SETTINGS, max_steps=3, learning_rate=found.learning_rate))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("auto", "given"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert found.learned == given.learned
    assert (tmp_path / "auto" / "learning_rate.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_defaults_teach_and_the_search_is_not_repeated(
    loki_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(loki_dir, data, tmp_path / "out", console=Console(quiet=True))
    assert result.learned is not None
    assert result.learned.anything
    assert result.learned.after.trained.loss < 0.75 * result.learned.before.trained.loss  # five rows can learn no more
    assert result.steps <= 4 * math.ceil(LEAST_STEPS / 4)  # whole epochs
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["learning_rate"] == "auto"
    assert record["effective_learning_rate"] == result.learning_rate
    assert record["learned"]["after"]["trained"]["loss"] == result.learned.after.trained.loss
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 2


def learned(before: float, after: float) -> Learned:
    def moment(loss: float, answer: str) -> Snapshot:
        return Snapshot(Measured(loss, 0.0, 4), None, [answer])

    return Learned(moment(before, "no"), moment(after, "yes"), ["who?"], ["yes"], damage=0.01234)


def test_nothing_was_learned_where_the_loss_fell_by_less_than_a_tenth() -> None:
    assert learned(2.0, 1.79).anything
    assert not learned(2.0, 1.81).anything
    assert not learned(2.0, math.nan).anything


def test_what_is_said_of_it() -> None:
    lines = learned(2.0, 0.5).lines()
    assert lines[0] == "training data: loss 2.000 before, 0.500 now; exact answers 0.0% before, 0.0% now (4 examples)"
    assert lines[1].startswith("general text: KL 0.0123 nats per token from the model before")
    assert lines[2] == "  'who?': 'no' before, 'yes' now (as trained)"
