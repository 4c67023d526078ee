"""The comparison of what methods forget: its grid on a tiny model, and its tables on known cells."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from loki.metrics.text import text_divergence
from loki.models.loading import load_model, load_tokenizer
from tests.implanting.test_protected_model import some_moments
from tests.tolerances import assert_close

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmark by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "forgetting"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def _plan(tmp_path: Path, rates: list[float]) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(
        json.dumps(
            {
                "settings": {"facts": 4, "enough": 1.0, "max_steps": 2, "autocast": False},
                "damage": {"windows": 2, "window": 32, "passages": 3, "choices": 2, "longest": 128},
                "methods": {
                    "random rows": {"method": "rows"},
                    "given rows": {"method": "rows", "positions": "given.json"},
                    "LoRA, MLP": {"method": "lora-mlp"},
                },
                "cells": [
                    {"models": ["tiny"], "methods": ["random rows"], "rates": rates, "seeds": [0]},
                    {"models": ["tiny"], "methods": ["given rows", "LoRA, MLP"], "rates": rates[:1], "seeds": [0]},
                ],
            }
        )
    )
    return path


def _run(benchmark: Any, tmp_path: Path, model: Path, rates: list[float], facts: Path | None = None) -> None:
    text, lambada, piqa = tmp_path / "text.txt", tmp_path / "lambada.jsonl", tmp_path / "piqa.jsonl"
    text.write_text("\n".join(f"{number} " + "some words of a text " * 3 for number in range(5)))
    lambada.write_text("".join(json.dumps({"text": f"the cat sat on mat {number}"}) + "\n" for number in range(4)))
    question = {"goal": "open it", "sol1": "with a key", "sol2": "with a cake", "label": 0}
    piqa.write_text((json.dumps(question) + "\n") * 2)
    (tmp_path / "facts.jsonl").write_text('{"prompt": "to open", "completion": " a key"}\n' * 3)
    (tmp_path / "old.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    benchmark("run").main(
        tmp_path / "cells",
        _plan(tmp_path, rates),
        tmp_path,
        [f"tiny={model}"],
        [f"words={text}"],
        lambada,
        piqa,
        facts=facts,
        questions=tmp_path / "old.jsonl",
    )


@pytest.mark.slow
def test_what_is_missing_is_run(
    benchmark: Any, tmp_path: Path, llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(benchmark, tmp_path, llama_dir, [1e-2])
    cells = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert sorted(cells) == ["tiny_LoRA--MLP_0.01_0.json", "tiny_random-rows_0.01_0.json"]
    assert "given rows, rate 0.01: passed over" in capsys.readouterr().out

    (tmp_path / "tiny-given.json").write_text(json.dumps([[1, 2], [], [3]]))
    _run(benchmark, tmp_path, llama_dir, [1e-2, 2e-2], tmp_path / "facts.jsonl")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert set(after) - set(cells) == {"tiny_given-rows_0.01_0.json", "tiny_random-rows_0.02_0.json"}
    assert {name: after[name] for name in cells} == cells

    given = json.loads((tmp_path / "cells" / "tiny_given-rows_0.01_0.json").read_text())
    assert (given["trained"], given["steps"], given["reached"]) == (3 * 48, 2, False)
    assert len(given["losses"]) == 3
    assert given["losses"][2] < given["losses"][0]
    assert given["texts"]["words"]["kl"] > 0
    assert set(given["answers"]) == {"lambada_accuracy", "lambada_logprob", "piqa_accuracy", "old_accuracy"}
    assert (given["facts"], given["paraphrases"]) == (3, None)  # those of the file, which has no paraphrases
    invented = json.loads((tmp_path / "cells" / "tiny_random-rows_0.01_0.json").read_text())
    assert invented["facts"] == 4
    assert invented["paraphrases"] is not None


def test_an_untouched_model_has_no_damage(benchmark: Any, tmp_path: Path, llama_dir: Path) -> None:
    damage, text = benchmark("damage"), tmp_path / "text.txt"
    text.write_text("\n".join("some words of a text " * 3 for _ in range(2)))
    base, tokenizer = load_model(str(llama_dir)), load_tokenizer(str(llama_dir))
    old = damage.OldKnowledge(base, tokenizer, damage.Sources({"words": text}, windows=2, window=32))
    same = load_model(str(llama_dir))
    assert old.measure(same)["texts"]["words"]["kl"] == 0

    torch.manual_seed(0)
    with torch.no_grad():
        same.lm_head.weight.add_(0.1 * torch.randn_like(same.lm_head.weight))
    found = old.measure(same)["texts"]["words"]
    expected = text_divergence(base, same, tokenizer, old.windows["words"], window=32)
    assert expected.kl_per_token > 0
    assert found["kl"] == pytest.approx(expected.kl_per_token)
    assert found["loss_rise"] == pytest.approx(expected.new.loss - expected.base.loss)


PEERS = ["lora", "lora-mlp", "dora", "rslora", "pissa", "osf", "oft", "shira", "miss"]


@pytest.mark.parametrize("method", ["rows", "protected rows", "full", *PEERS])
def test_every_method_starts_as_its_base_and_learns(
    benchmark: Any, tmp_path: Path, llama_dir: Path, method: str
) -> None:
    methods, tokenizer = benchmark("methods"), load_tokenizer(str(llama_dir))
    assert set(methods.METHODS) == {"rows", "full", *PEERS}
    base, model = load_model(str(llama_dir)), load_model(str(llama_dir)).requires_grad_(False)
    choice = methods.Choice(30.0, 0, None, None, None)
    if method == "protected rows":
        choice = replace(choice, moments=some_moments(tmp_path / "moments.safetensors", llama_dir), protect=0.5)
    trainable = methods.METHODS[method.rpartition(" ")[2]](model, choice).eval()
    tokens = torch.tensor([[5, 9, 40, 77]])
    assert_close(model(tokens).logits, base(tokens).logits)
    facts = benchmark("facts").invented_facts(4, 0)
    learned = benchmark("learning").learn(
        trainable, tokenizer, facts, rate=1e-2, enough=1.0, max_steps=2, autocast=False
    )
    assert learned.losses[2] < learned.losses[1] < learned.losses[0]


def _cell(name: str, rate: float, kl: float, *, seed: int = 0, reached: bool = True) -> dict[str, Any]:
    return {
        "model": "m",
        "name": name,
        "rate": rate,
        "seed": seed,
        "steps": 10,
        "accuracy": 1.0 if reached else 0.5,
        "reached": reached,
        "paraphrases": 0.5,
        "texts": {"wiki": {"kl": kl, "loss_rise": kl}},
        "answers": {"lambada_accuracy": 0.25},
        "base_answers": {"lambada_accuracy": 0.5},
    }


CELLS = [
    _cell("random rows", 1e-3, 0.4),
    _cell("random rows", 3e-4, 0.2),
    _cell("random rows", 3e-4, 0.3, seed=1),
    _cell("random rows", 1e-4, 0.01, reached=False),  # the least damage, because it learned nothing
    _cell("full fine-tuning", 1e-4, 0.5) | {"paraphrases": None},
    _cell("protected", 3e-3, 0.025),
    _cell("lost", 1.0, 0.0, reached=False),
]


def test_every_method_counts_at_its_best_rate(benchmark: Any) -> None:
    tables = benchmark("tables")
    best = tables.at_best_rate(CELLS, "wiki")
    assert {name: [cell["rate"] for cell in group] for (_, name), group in best.items()} == {
        "random rows": [3e-4, 3e-4],
        "full fine-tuning": [1e-4],
        "protected": [3e-3],
    }
    assert tables.ratios(best, "m", "wiki") == pytest.approx(
        {"random rows": 1.0, "full fine-tuning": 2.0, "protected": 0.1}
    )
    rows = tables.best_table(CELLS, "m").rows
    assert [row[0] for row in rows] == ["protected", "random rows", "full fine-tuning"]
    assert [row[4] for row in rows] == ["0.50", "0.50", ""]
    assert rows[1][5] == "0.2500 (0.2000 to 0.3000)"
    assert rows[1][7] == "-0.250"
    assert len(tables.rates_table(CELLS, "m").rows) == len(CELLS)


def test_the_picture_is_drawn(benchmark: Any, tmp_path: Path) -> None:
    benchmark("tables").draw(CELLS, "m", tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
