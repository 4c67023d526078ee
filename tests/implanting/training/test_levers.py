"""Keeping, budgets of damage, and rows along the least used directions, in training by TRL."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loki import LoKIConfig, create_loki_model
from loki.errors import LokiError
from loki.implanting.base_rows import base_rows, remember_base
from loki.implanting.splitting import active_parameters
from loki.implanting.training.base_predictions import base_predictions
from loki.implanting.training.damage import damage
from loki.implanting.training.keep import KeepTerm
from loki.implanting.training.levers import Levers
from loki.implanting.training.trainer import train
from loki.metrics.divergence import kl_of_logits
from loki.metrics.text import encode_for
from loki.metrics.texts import general_text
from loki.models.loading import load_tokenizer
from tests.implanting.test_protected_model import some_moments
from tests.implanting.training.conftest import POSITIONS
from tests.implanting.training.test_trainer import SETTINGS, TOKENS, StopAt
from tests.tiny_models import tiny_model
from tests.tolerances import assert_close


@pytest.fixture
def general(tmp_path: Path) -> Path:
    (tmp_path / "general.txt").write_text("Of all that is known, most is better kept than lost. " * 12)
    return tmp_path / "general.txt"


@pytest.fixture
def protected_dir(llama_dir: Path, loki_dir: Path, tmp_path: Path) -> Path:
    return create_loki_model(
        model_name=llama_dir,
        target_pos_path=tmp_path / "positions.json",
        save_dir=tmp_path / "protected",
        moments=some_moments(tmp_path / "moments.safetensors", llama_dir),
        protect=0.5,
    )


@pytest.mark.parametrize("kind", ["loki_dir", "protected_dir"])
def test_damage_after_training_is_that_of_what_was_saved(
    kind: str, llama_dir: Path, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    result = train(request.getfixturevalue(kind), data, tmp_path / "out", replace(SETTINGS, learning_rate=0.05))
    base, trained = (AutoModelForCausalLM.from_pretrained(folder) for folder in (llama_dir, tmp_path / "out"))
    windows = encode_for(base, load_tokenizer(llama_dir), general_text().texts[::3]).ids
    assert len({len(window) for window in windows}) > 3
    before, after = (
        torch.cat([model(torch.tensor([window])).logits[0] for window in windows]).double().log_softmax(-1).detach()
        for model in (base, trained)
    )
    expected = (before.exp() * (before - after)).sum(-1).mean()
    assert expected > 1e-4
    assert result.learned is not None
    assert_close(torch.tensor(result.learned.damage), expected.float())
    assert "general text: KL" in "".join(result.learned.lines())


def disturb(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["rows", "directions", "adapter"])
def test_base_rows_are_the_bases_to_the_last_bit(
    llama_dir: Path, loki_dir: Path, protected_dir: Path, kind: str
) -> None:
    if kind == "adapter":
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama_dir), LoKIConfig(positions=POSITIONS))
    else:
        model = AutoModelForCausalLM.from_pretrained(loki_dir if kind == "rows" else protected_dir)
    base = AutoModelForCausalLM.from_pretrained(llama_dir)(TOKENS).logits
    remember_base(model)
    disturb(model)
    changed = model(TOKENS).logits
    assert not torch.allclose(changed, base)
    with base_rows(model):
        assert torch.equal(model(TOKENS).logits, base)
    assert torch.equal(model(TOKENS).logits, changed)


def test_what_was_not_remembered_is_not_switched_off(loki_dir: Path) -> None:
    with pytest.raises(LokiError, match="remember_base"), base_rows(AutoModelForCausalLM.from_pretrained(loki_dir)):
        pass
    with pytest.raises(LokiError, match="no selected rows"), base_rows(tiny_model()):
        pass


def test_the_terms_gradient_is_that_of_two_models(llama_dir: Path, loki_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(loki_dir)
    remember_base(model)
    disturb(model)
    windows = [[5, 9, 40, 77], [8, 3]]
    term = KeepTerm(windows, weight=0.7, per_step=2)
    ids, counted = term.batch(0, {})
    term.loss(model, ids, counted, term.base(model, 0, ids)).backward()
    found = {name: parameter.grad.clone() for name, parameter in active_parameters(model).items()}
    model.zero_grad()
    base = AutoModelForCausalLM.from_pretrained(llama_dir)
    total = torch.zeros(())
    for window in windows:
        with torch.no_grad():
            before = base(torch.tensor([window])).logits.log_softmax(-1)
        after = model(torch.tensor([window])).logits.log_softmax(-1)
        total = total + (before.exp() * (before - after)).sum()
    (0.7 * total / 6).backward()
    for name, parameter in active_parameters(model).items():
        assert_close(found[name], parameter.grad)
    assert damage(model, windows) == pytest.approx(float(total.detach() / 6), rel=1e-5)


def test_kept_predictions_are_the_bases(loki_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all tokens but one they are the whole divergence; of fewer a part of it, with everything else as one token."""
    monkeypatch.setenv("LOKI_CACHE", str(tmp_path / "cache"))
    model = AutoModelForCausalLM.from_pretrained(loki_dir)
    remember_base(model)
    windows = [[5, 9, 40, 77], [8, 3], [6, 7, 8]]
    tokens = model.config.vocab_size
    whole, few = (base_predictions(model, windows, top, "f00d") for top in (tokens - 1, 8))
    disturb(model)
    monkeypatch.setattr("loki.implanting.training.base_predictions.base_rows", None)  # from the disk now
    assert all(
        torch.equal(mine, kept)
        for mine, kept in zip(
            vars(few).values(), vars(base_predictions(model, windows, 8, "f00d")).values(), strict=True
        )
    )
    with pytest.raises(LokiError, match="cached predictions"):
        (file,) = [file for file in (tmp_path / "cache/keep").iterdir() if file.stat().st_size < 3000]
        save_file({name: value[:1].clone() for name, value in vars(few).items()}, file)
        base_predictions(model, windows, 8, "f00d")
    exact = KeepTerm(windows, weight=0.7, per_step=2)
    ids, counted = exact.batch(1, {})
    base = exact.base(model, 1, ids)
    assert isinstance(base, torch.Tensor)
    expected = exact.loss(model, ids, counted, base)
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in active_parameters(model).items()}
    model.zero_grad()
    cached = KeepTerm(windows, 0.7, 2, whole)
    found = cached.loss(model, ids, counted, cached.base(model, 1, ids))
    found.backward()
    assert_close(found, expected)
    for name, parameter in active_parameters(model).items():
        assert_close(parameter.grad, gradients[name])
    part = KeepTerm(windows, 0.7, 2, few)
    with torch.no_grad():
        logits = model(ids).logits[counted]
        kept, after = few.at(torch.tensor([6, 7, 8, 0, 1, 2, 3])), logits.log_softmax(-1).exp()
        total = 0.0
        for row, names, own, rest in zip(
            after, kept.tokens, kept.log_probabilities.exp(), kept.rest.exp(), strict=True
        ):
            chosen = row[names.long()]
            total += float((own * (own / chosen).log()).sum() + rest * (rest / (1 - chosen.sum())).log())
        value = float(part.loss(model, ids, counted, part.base(model, 1, ids)))
    assert value == pytest.approx(0.7 * total / 7, rel=1e-3)
    assert 0 < value < float(expected)


def test_predictions_are_kept_for_every_kind_of_module(
    loki_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base whose Linears are quantised predicts something else, and its configuration need not say so."""

    class Linear4bit(torch.nn.Linear):
        pass

    monkeypatch.setenv("LOKI_CACHE", str(tmp_path / "cache"))
    model = AutoModelForCausalLM.from_pretrained(loki_dir)
    remember_base(model)
    base_predictions(model, [[5, 9, 40]], 8, "f00d")
    model.model.layers[0].self_attn.q_proj.__class__ = Linear4bit
    base_predictions(model, [[5, 9, 40]], 8, "f00d")
    assert len(list((tmp_path / "cache/keep").iterdir())) == 2


def test_a_training_with_kept_predictions(
    loki_dir: Path, data: Path, general: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOKI_CACHE", str(tmp_path / "cache"))
    train(loki_dir, data, tmp_path / "asked", SETTINGS, levers=Levers(keep=str(general), keep_weight=50.0))
    levers = Levers(keep=str(general), keep_weight=50.0, keep_top_k=300)
    train(loki_dir, data, tmp_path / "kept", SETTINGS, levers=levers)
    train(loki_dir, data, tmp_path / "plain", SETTINGS)
    assert len(list((tmp_path / "cache" / "keep").iterdir())) == 1
    asked, kept, plain = (weights(tmp_path / name) for name in ("asked", "kept", "plain"))
    moved = sum(float((asked[name] - plain[name]).norm() ** 2) for name in plain) ** 0.5
    apart = sum(float((asked[name] - kept[name]).norm() ** 2) for name in plain) ** 0.5
    assert apart < 0.1 * moved


def test_windows_are_taken_in_turn() -> None:
    term = KeepTerm([[1, 2], [3, 4, 5], [6, 7]], weight=1.0, per_step=2)
    ids, counted = term.batch(1, {})
    assert ids.tolist() == [[6, 7], [1, 2]]
    assert counted.all()
    ids, counted = term.batch(2, {})
    assert (ids.tolist(), counted.tolist()) == ([[3, 4, 5], [6, 7, 0]], [[True] * 3, [True, True, False]])
    new = KeepTerm(None, weight=1.0, per_step=2)
    inputs = {
        "input_ids": torch.tensor([[9, 8, 7, 0]]),
        "labels": torch.tensor([[-100, -100, 7, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
    }
    ids, counted = new.batch(0, inputs)
    # The second token predicts the first of the answer.
    assert (ids.tolist(), counted.tolist()) == ([[9, 8, 7, 0]], [[True, False, False, False]])


def test_no_counted_token_is_no_damage() -> None:
    logits = torch.randn(1, 3, 5, requires_grad=True)
    kl_of_logits(torch.randn(1, 3, 5), logits, torch.zeros(1, 3, dtype=torch.bool)).backward()
    assert torch.equal(logits.grad, torch.zeros(1, 3, 5))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_keep_weight_0_is_plain_training_to_the_last_bit(
    loki_dir: Path, data: Path, general: Path, tmp_path: Path
) -> None:
    train(loki_dir, data, tmp_path / "plain", SETTINGS)
    train(loki_dir, data, tmp_path / "zero", SETTINGS, levers=Levers(keep=str(general), keep_weight=0.0))
    plain, zero = weights(tmp_path / "plain"), weights(tmp_path / "zero")
    assert all(torch.equal(tensor, zero[name]) for name, tensor in plain.items())


def damage_of(folder: Path, loki_dir: Path, windows: list[list[int]]) -> float:
    model = AutoModelForCausalLM.from_pretrained(loki_dir)
    remember_base(model)
    model.load_state_dict(weights(folder), strict=False)
    return damage(model, windows)


@pytest.mark.slow
def test_text_too_large_to_be_read_is_not_hashed_first(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").touch()
    os.truncate(tmp_path / "keep.txt", 2**40)  # a hole
    with pytest.raises(LokiError, match=r"keep\.txt"):
        Levers(keep=str(tmp_path / "keep.txt")).record(None)


@pytest.mark.parametrize("keep", ["text", "new"])
def test_keeping_keeps(loki_dir: Path, data: Path, general: Path, tmp_path: Path, keep: str) -> None:
    settings = replace(SETTINGS, max_steps=16)
    tokenizer = load_tokenizer(loki_dir)
    text = general.read_text()[:100] if keep == "text" else "0 + 1 ="
    windows = [tokenizer(text)["input_ids"]]
    kept = str(general) if keep == "text" else "new"
    train(loki_dir, data, tmp_path / "plain", settings)
    train(loki_dir, data, tmp_path / "kept", settings, levers=Levers(keep=kept, keep_weight=20.0))
    assert 0 < damage_of(tmp_path / "kept", loki_dir, windows) < 0.8 * damage_of(tmp_path / "plain", loki_dir, windows)


@pytest.mark.slow
def test_an_interrupted_training_with_levers_resumes_exactly(
    protected_dir: Path, data: Path, general: Path, tmp_path: Path
) -> None:
    levers = Levers(keep=str(general), keep_batch=1, keep_length=32)
    train(protected_dir, data, tmp_path / "whole", SETTINGS, levers=levers)
    with pytest.raises(KeyboardInterrupt):
        train(protected_dir, data, tmp_path / "part", SETTINGS, levers=levers, callbacks=[StopAt(3)])
    train(protected_dir, data, tmp_path / "part", SETTINGS, levers=levers)
    whole, part = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


def test_a_budget_of_0_trains_nothing(
    llama_dir: Path, loki_dir: Path, data: Path, general: Path, tmp_path: Path
) -> None:
    levers = Levers(keep=str(general), keep_weight=0.0, max_damage=0.0, damage_every=1)
    result = train(loki_dir, data, tmp_path / "out", SETTINGS, levers=levers)
    assert result.changed_rows == 0
    out = weights(tmp_path / "out")
    assert all(torch.equal(tensor, out[name]) for name, tensor in weights(llama_dir).items())


@pytest.mark.slow
def test_a_budget_is_kept(loki_dir: Path, data: Path, general: Path, tmp_path: Path) -> None:
    said = Console(file=io.StringIO(), width=500)
    windows = [load_tokenizer(loki_dir)(general.read_text())["input_ids"][:32]]
    (tmp_path / "short.txt").write_text(general.read_text()[:32])
    levers = Levers(keep=str(tmp_path / "short.txt"), keep_weight=0.0, max_damage=1e9, damage_every=1)
    train(loki_dir, data, tmp_path / "free", SETTINGS, levers=levers)
    whole = damage_of(tmp_path / "free", loki_dir, windows)
    levers = replace(levers, max_damage=0.9 * whole)
    result = train(loki_dir, data, tmp_path / "out", SETTINGS, levers=levers, console=said)
    assert result.changed_rows == 5
    assert 0 < damage_of(tmp_path / "out", loki_dir, windows) <= 0.9 * whole
    assert "is above the budget" in said.file.getvalue()


def test_bad_levers(loki_dir: Path, data: Path, tmp_path: Path) -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(LokiError, match=f"--keep-weight {weight}"):
            Levers(keep="new", keep_weight=weight)
    for budget in (-0.1, float("nan"), float("inf")):
        with pytest.raises(LokiError, match=f"--max-damage {budget}"):
            Levers(keep="text.txt", max_damage=budget)
    with pytest.raises(LokiError, match="--keep"):
        Levers(max_damage=0.1)
    with pytest.raises(LokiError, match=r"--keep-weight 0\.5 needs --keep"):
        Levers(keep_weight=0.5)
    with pytest.raises(LokiError, match=r"--replay-fraction 0\.5 needs --replay"):
        Levers(replay_fraction=0.5)
    for length in (0, 1):
        with pytest.raises(LokiError, match=f"--keep-length {length} is out of range"):
            Levers(keep="text.txt", keep_length=length)
    for keep in (None, "new"):
        with pytest.raises(LokiError, match="--keep-top-k"):
            Levers(keep=keep, keep_top_k=8)
    with pytest.raises(LokiError, match="--keep-top-k 0"):
        Levers(keep="text.txt", keep_top_k=0)
    (tmp_path / "some.txt").write_text("once upon a time")
    with pytest.raises(LokiError, match="--keep-top-k 100000 is out of range"):
        train(
            loki_dir,
            data,
            tmp_path / "x",
            SETTINGS,
            levers=Levers(keep=str(tmp_path / "some.txt"), keep_top_k=100_000),
        )
    assert not (tmp_path / "x").exists()
    (tmp_path / "short.txt").write_text("x")
    with pytest.raises(LokiError, match=r"no text .*2 tokens"):
        train(loki_dir, data, tmp_path / "out", SETTINGS, levers=Levers(keep=str(tmp_path / "short.txt")))
    with pytest.raises(LokiError, match="does not exist"):
        train(loki_dir, data, tmp_path / "out2", SETTINGS, levers=Levers(keep=str(tmp_path / "missing.txt")))
