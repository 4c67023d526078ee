"""The comparison of what methods forget: its grid on a tiny model, and its tables on known cells."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from loki.artefacts.moments import Moments
from loki.implanting.protected import directions_of
from loki.metrics.accuracy import Question
from loki.metrics.text import text_divergence
from loki.models.loading import load_model, load_tokenizer
from tests.implanting.test_protected_model import some_moments
from tests.tiny_models import tiny_tokenizer
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


def _plan(tmp_path: Path, rates: list[float], more: list[dict[str, Any]], *, learns: bool) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(
        json.dumps(
            {
                "settings": {
                    "facts": 4,
                    "calls": 3,
                    "enough": 0.0 if learns else 1.0,
                    "max_steps": 2,
                    "autocast": False,
                },
                "damage": {"windows": 2, "window": 32, "passages": 3, "choices": 2, "longest": 128},
                "methods": {
                    "random rows": {"method": "rows"},
                    "given rows": {"method": "rows", "positions": "given.json"},
                    "LoRA, MLP": {"method": "lora-mlp"},
                    "rows, scale 0": {"method": "rows", "scale": 0.0},
                    "rows, replay, dft": {"method": "rows", "replay": 1.0, "keep_text": "keep.txt", "dft": True},
                    "full, keep": {"method": "full", "keep": 1.0, "keep_text": "keep.txt"},
                },
                "cells": [
                    {"models": ["tiny"], "methods": ["random rows"], "rates": rates, "seeds": [0]},
                    {"models": ["tiny"], "methods": ["given rows", "LoRA, MLP"], "rates": rates[:1], "seeds": [0]},
                    *more,
                ],
            }
        )
    )
    return path


def _run(
    benchmark: Any,
    tmp_path: Path,
    model: Path,
    rates: list[float],
    facts: Path | None = None,
    *more: dict[str, Any],
    learns: bool = False,
) -> None:
    text, lambada, piqa = tmp_path / "text.txt", tmp_path / "lambada.jsonl", tmp_path / "piqa.jsonl"
    text.write_text("\n".join(f"{number} " + "some words of a text " * 3 for number in range(5)))
    lambada.write_text("".join(json.dumps({"text": f"the cat sat on mat {number}"}) + "\n" for number in range(4)))
    question = {"goal": "open it", "sol1": "with a key", "sol2": "with a cake", "label": 0}
    piqa.write_text((json.dumps(question) + "\n") * 2)
    (tmp_path / "facts.jsonl").write_text('{"prompt": "to open", "completion": " a key"}\n' * 3)
    (tmp_path / "old.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    (tmp_path / "keep.txt").write_text(("some words of a text " * 5 + "\n") * 64)
    mmlu = {"question": "What follows A?", "choices": ["C", "B", "D", "A"], "answer": 1}
    (tmp_path / "mmlu.jsonl").write_text((json.dumps(mmlu) + "\n") * 3)
    functions = [
        {
            "id": f"c{number}",
            "question": [[{"role": "user", "content": f"Add {number}."}]],
            "function": [{"name": f"add{number}", "parameters": {"properties": {"n": {"type": "integer"}}}}],
        }
        for number in range(7)
    ]
    truths = [
        {"id": f"c{number}", "ground_truth": [{f"add{number}": {"n": [number], "unit": ["", "m"]}}]}
        for number in range(7)
    ]
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello, who are you?"}]}\n')
    for name, records in (("calls", functions), ("truths", truths)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    benchmark("run").main(
        tmp_path / "cells",
        _plan(tmp_path, rates, list(more), learns=learns),
        tmp_path,
        [f"tiny={model}"],
        [f"words={text}"],
        lambada,
        piqa,
        mmlu=tmp_path / "mmlu.jsonl",
        chat=tmp_path / "chat.jsonl",
        facts=facts,
        questions=tmp_path / "old.jsonl",
        calls=tmp_path / "calls.jsonl",
        call_answers=tmp_path / "truths.jsonl",
    )


@pytest.mark.slow
def test_what_is_missing_is_run(
    benchmark: Any, tmp_path: Path, llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(benchmark, tmp_path, llama_dir, [1e-2])
    cells = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
    assert sorted(cells) == ["tiny_LoRA--MLP_0.01_0.json", "tiny_random-rows_0.01_0.json"]
    assert "given rows, rate 0.01: passed over" in capsys.readouterr().out

    (tmp_path / "tiny-given.json").write_text(json.dumps([[1, 2], [], [3]]))
    _run(benchmark, tmp_path, llama_dir, [1e-2, 2e-2], tmp_path / "facts.jsonl")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
    assert set(after) - set(cells) == {"tiny_given-rows_0.01_0.json", "tiny_random-rows_0.02_0.json"}
    assert {name: after[name] for name in cells} == cells

    given = json.loads((tmp_path / "cells" / "tiny_given-rows_0.01_0.json").read_text())
    assert (given["trained"], given["steps"], given["reached"]) == (3 * 48, 2, False)
    assert len(given["losses"]) == 3
    assert given["losses"][2] < given["losses"][0]
    assert given["texts"]["words"]["kl"] > 0
    assert given["texts"]["chat"]["kl"] > 0
    assert set(given["answers"]) == {"lambada_accuracy", "lambada_logprob", "piqa_accuracy", "old_accuracy"} | {
        "mmlu_accuracy",
        "mmlu_kl",
    }
    assert given["base_answers"]["mmlu_kl"] == 0 < given["answers"]["mmlu_kl"]
    assert (given["examples"], given["held_out"]) == (3, None)  # those of the file, which has no paraphrases
    invented = json.loads((tmp_path / "cells" / "tiny_random-rows_0.01_0.json").read_text())
    assert invented["examples"] == 4
    assert invented["held_out"] is not None


@pytest.mark.slow
def test_cells_whose_change_is_scaled_or_that_replay(benchmark: Any, tmp_path: Path, llama_dir: Path) -> None:
    group = {"models": ["tiny"], "methods": ["rows, scale 0", "rows, replay, dft"], "rates": [1e-2], "seeds": [0]}
    _run(benchmark, tmp_path, llama_dir, [1e-2], None, group)
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "cells").glob("*.json")}
    plain, replayed = found["tiny_random-rows_0.01_0"], found["tiny_rows--replay--dft_0.01_0"]
    assert found["tiny_rows--scale-0_0.01_0"]["losses"] == plain["losses"]  # it was trained all the same
    assert found["tiny_rows--scale-0_0.01_0"]["texts"]["words"]["kl"] == pytest.approx(0, abs=1e-9)
    assert replayed["losses"][0] == plain["losses"][0] and replayed["losses"][1] != plain["losses"][1]


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_are_run(
    benchmark: Any, tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(benchmark("methods").METHODS, "rows", no_memory)
    with pytest.raises(SystemExit, match=r"^failed: tiny_random-rows_0.01_0: CUDA out of memory$"):
        _run(benchmark, tmp_path, llama_dir, [1e-2])
    assert [path.name for path in (tmp_path / "cells").glob("*.json")] == ["tiny_LoRA--MLP_0.01_0.json"]


@pytest.mark.slow
def test_further_tasks_and_seeds_at_the_best_rate(
    benchmark: Any, tmp_path: Path, llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"models": ["tiny"], "methods": ["random rows"], "seeds": [1], "rates": "best"}
    more = [
        rows,
        rows | {"methods": ["full, keep"]},  # no rate of it was tried
        rows | {"tasks": ["sequence"], "seeds": [0]},
        rows | {"tasks": ["calls"], "rates": [1e-2], "methods": ["full, keep", "LoRA, MLP"]},
    ]
    _run(benchmark, tmp_path, llama_dir, [1e-2, 1e-3], None, *more, learns=True)
    assert "full, keep: passed over, no rate" in capsys.readouterr().out
    found = {path.name for path in (tmp_path / "cells").glob("*.json")}
    # Without a step none does damage, and the first rate is as good as the second.
    best = min((1e-2, 1e-3), key=lambda rate: f"tiny_random-rows_{rate:g}_1.json" not in found)
    assert {f"tiny_random-rows_{best:g}_1.json", f"tiny_sequence_random-rows_{best:g}_0.json"} <= found
    assert {"tiny_calls_full--keep_0.01_1.json", "tiny_calls_LoRA--MLP_0.01_1.json"} <= found
    sequence = json.loads((tmp_path / "cells" / f"tiny_sequence_random-rows_{best:g}_0.json").read_text())
    assert [stage["task"] for stage in sequence["known"]] == ["facts", "calls", "facts"]
    assert sequence["texts"]["words"]["kl"] == 0


def test_calls_are_held_out_by_function(benchmark: Any, tmp_path: Path) -> None:
    function = {"name": "area", "parameters": {"properties": {"a": {"type": "integer"}, "unit": {"type": "string"}}}}
    asked = [[{"role": "user", "content": "How large?"}]]
    others = [function | {"name": f"f{number}"} for number in range(3)]
    records = [{"id": str(n), "question": asked, "function": [f]} for n, f in enumerate([function, function, *others])]
    truths = [
        {
            "id": record["id"],
            "ground_truth": [{record["function"][0]["name"]: {"a": [3], "s": ["x"], "unit": ["", "m"]}}],
        }
        for record in records
    ]
    for name, lines in (("calls", records), ("truths", truths)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = benchmark("tasks").calls_task(tmp_path / "calls", tmp_path / "truths", 2, 0)
    names = [question.answer.partition("(")[0] for question in (*task.trained, *task.held_out)]
    assert sorted(names) == ["area", "f0", "f1", "f2"]
    call = next(question for question in (*task.trained, *task.held_out) if question.answer.startswith("area"))
    assert call.answer == 'area(a=3, s="x")'
    assert call.prompt.startswith('Function: {"name": "area", "parameters": {"a": "integer", "unit": "string"}}')


@pytest.mark.parametrize("method", ["rows", "protected rows", "full", "lora-mlp", "osf"])
def test_what_was_learned_stays_when_the_next_task_begins(
    benchmark: Any, tmp_path: Path, llama_dir: Path, method: str
) -> None:
    methods, model = benchmark("methods"), load_model(str(llama_dir)).requires_grad_(False)
    choice = methods.Choice(30.0, 0, None, None, None)
    if method == "protected rows":
        choice = replace(choice, moments=some_moments(tmp_path / "moments.safetensors", llama_dir), protect=0.5)
    trainable = methods.METHODS[method.rpartition(" ")[2]](model, choice).eval()
    tokens = torch.tensor([[5, 9, 40, 77]])
    before = model(tokens).logits.detach()
    with torch.no_grad():
        for parameter in trainable.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    changed = trainable(tokens).logits.detach()
    merged = methods.ordinary(trainable)
    assert_close(merged(tokens).logits, changed)
    assert (changed - before).abs().max() > 1e-3
    again = methods.METHODS[method.rpartition(" ")[2]](merged.requires_grad_(False), choice).eval()
    assert_close(again(tokens).logits, changed)


def test_a_step_along_a_softened_direction_is_felt_no_more_than_at_the_limit(
    benchmark: Any, tmp_path: Path, llama_dir: Path
) -> None:
    methods = benchmark("methods")
    moments = some_moments(tmp_path / "moments.safetensors", llama_dir)
    model = load_model(str(llama_dir))
    model.requires_grad_(False)
    choice = methods.Choice(30.0, 0, None, moments, 0.25, 0.5)
    trained = [one for one in methods.train_rows(model, choice).parameters() if one.requires_grad]
    for layer, (directions, coefficients) in enumerate(zip(directions_of(model).values(), trained, strict=True)):
        moment = Moments(moments).second_moment(layer)
        used = torch.linalg.eigvalsh(moment)
        blocks, size = used.shape
        assert coefficients.shape[1] == blocks * size  # all directions, where a hard choice trains along three quarters
        limit = used[:, size - size // 4, None]
        felt = torch.einsum("bni,bnm,bmi->bi", directions, moment, directions)
        assert_close(felt, used * limit / (used + limit))
        assert (felt <= limit).all()


def test_what_is_kept_pulls_back_to_the_base(benchmark: Any, llama_dir: Path) -> None:
    learning, base = benchmark("learning"), load_model(str(llama_dir))
    windows = torch.randint(5, 90, (16, 12), generator=torch.Generator().manual_seed(0))
    keep, model = learning.Keep(base, windows, 2.0, per_step=4), load_model(str(llama_dir))
    assert float(keep.term(model, 0)) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        model.lm_head.weight.add_(0.1 * torch.randn_like(model.lm_head.weight))
    ids = windows[4:8]  # those of the second step
    before, after = base(ids).logits.log_softmax(-1), model(ids).logits.log_softmax(-1)
    expected = 2 * (before.exp() * (before - after)).sum(-1).mean()
    assert_close(keep.term(model, 1), expected.detach())
    assert float(expected.detach()) > 0.01


def test_what_is_replayed_is_the_loss_of_the_texts(benchmark: Any, llama_dir: Path) -> None:
    windows = torch.randint(5, 90, (16, 12), generator=torch.Generator().manual_seed(0))
    model = load_model(str(llama_dir))
    replay = benchmark("learning").Keep(None, windows, 0.5, per_step=4)
    assert_close(replay.term(model, 1), 0.5 * model(windows[4:8], labels=windows[4:8]).loss)


@pytest.mark.parametrize("dft", [False, True])
def test_tokens_weigh_their_probability_in_dft(benchmark: Any, llama_dir: Path, dft: bool) -> None:
    learning, tokenizer = benchmark("learning"), load_tokenizer(str(llama_dir))
    questions = [Question("a", "2 + 2 =", "4"), Question("a", "the sea is", "wide")]
    models = [load_model(str(llama_dir)).requires_grad_(True) for _ in range(2)]
    options = {"rate": 1e-3, "enough": 2.0, "max_steps": 1, "autocast": False}
    learning.learn(models[0], tokenizer, questions, **options, dft=dft)
    ids, attended, labels, kept = learning._left_padded(tokenizer, questions)
    logits = models[1].train()(input_ids=ids, attention_mask=attended, logits_to_keep=kept, use_cache=False).logits
    wanted = labels != -100
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0][wanted]
    (-(chosen * chosen.detach().exp() if dft else chosen).mean()).backward()
    torch.nn.utils.clip_grad_norm_(models[1].parameters(), 1.0)
    for learned, expected in zip(*(model.parameters() for model in models), strict=True):
        assert_close(learned.grad, expected.grad, torch.float32)


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


PEERS = ["lora", "lora-mlp", "dora", "rslora", "pissa", "corda", "osf", "oft", "shira", "miss"]


@pytest.mark.parametrize("method", ["rows", "protected rows", "full", *PEERS])
def test_every_method_starts_as_its_base_and_learns(
    benchmark: Any, tmp_path: Path, llama_dir: Path, method: str
) -> None:
    methods, tokenizer = benchmark("methods"), load_tokenizer(str(llama_dir))
    assert set(methods.METHODS) == {"rows", "full", *PEERS}
    base, model = load_model(str(llama_dir)), load_model(str(llama_dir)).requires_grad_(False)
    windows = torch.randint(5, 90, (24, 16), generator=torch.Generator().manual_seed(0))
    choice = methods.Choice(30.0, 0, None, None, None, calibration=windows)
    if method == "protected rows":
        choice = replace(choice, moments=some_moments(tmp_path / "moments.safetensors", llama_dir), protect=0.5)
    trainable = methods.METHODS[method.rpartition(" ")[2]](model, choice).eval()
    tokens = torch.tensor([[5, 9, 40, 77]])
    assert_close(model(tokens).logits, base(tokens).logits)
    facts = benchmark("tasks").facts_task(benchmark("facts").invented_facts(4, 0)).trained
    learned = benchmark("learning").learn(
        trainable, tokenizer, facts, rate=1e-2, enough=1.0, max_steps=2, autocast=False
    )
    assert learned.losses[2] < learned.losses[1] < learned.losses[0]


def _cell(name: str, rate: float, kl: float, *, seed: int = 0, reached: bool = True) -> dict[str, Any]:
    return {
        "model": "m",
        "task": "facts",
        "name": name,
        "rate": rate,
        "seed": seed,
        "steps": 10,
        "accuracy": 1.0 if reached else 0.5,
        "reached": reached,
        "held_out": 0.5,
        "texts": {"wiki": {"kl": kl, "loss_rise": kl}},
        "answers": {"lambada_accuracy": 0.25},
        "base_answers": {"lambada_accuracy": 0.5},
    }


CELLS = [
    _cell("random rows", 1e-3, 0.4),
    _cell("random rows", 3e-4, 0.2),
    _cell("random rows", 3e-4, 0.3, seed=1),
    _cell("random rows", 1e-4, 0.01, reached=False),  # the least damage, because it learned nothing
    _cell("full fine-tuning", 1e-4, 0.5) | {"held_out": None},
    _cell("protected", 3e-3, 0.025),
    _cell("lost", 1.0, 0.0, reached=False),
]


def test_every_method_counts_at_its_best_rate(benchmark: Any) -> None:
    tables = benchmark("tables")
    best = tables.at_best_rate(CELLS, "wiki")
    assert {name: [cell["rate"] for cell in group] for name, group in best.items()} == {
        "random rows": [3e-4, 3e-4],
        "full fine-tuning": [1e-4],
        "protected": [3e-3],
    }
    assert tables.ratios(best, "wiki") == pytest.approx({"random rows": 1.0, "full fine-tuning": 2.0, "protected": 0.1})
    rows = tables.method_table("best", CELLS, best).rows
    assert [row[0] for row in rows] == ["protected", "random rows", "full fine-tuning"]
    assert [row[4] for row in rows] == ["0.50", "0.50", ""]
    assert rows[1][5] == "0.2500 (0.2000 to 0.3000)"
    assert rows[1][7] == "-0.250"
    assert len(tables.rates_table("all", CELLS).rows) == len(CELLS)


def test_methods_that_know_as_much_are_compared(benchmark: Any) -> None:
    """Not the rate of least damage, at which less was learned than the words that were trained."""
    more = [
        _cell("full fine-tuning", 5e-5, 0.1) | {"held_out": 0.2},
        _cell("protected", 1e-2, 0.06) | {"held_out": 0.7},
        _cell("random rows", 3e-3, 0.1, reached=False) | {"held_out": 0.9},
    ]
    tables = benchmark("tables")
    knowing = tables.knowing_more([*CELLS, *more], "wiki", 0.6)
    assert {name: group[0]["rate"] for name, group in knowing.items()} == {"protected": 1e-2}
    assert tables.knowing_more([*CELLS, *more], "wiki", 0.5)["random rows"][0]["rate"] == 3e-4


def _write_cells(folder: Path) -> None:
    for number, cell in enumerate(CELLS):
        (folder / f"{number}.json").write_text(json.dumps(cell))


def test_the_picture_is_drawn(benchmark: Any, tmp_path: Path) -> None:
    _write_cells(tmp_path)
    benchmark("tables").main(tmp_path, tmp_path / "pareto.png", 0.5)
    assert (tmp_path / "m-pareto.png").read_bytes().startswith(b"\x89PNG")


def test_dialogues_are_in_the_models_own_form(benchmark: Any) -> None:
    tokenizer, dialogue = tiny_tokenizer(), benchmark("damage").dialogue
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    tokenizer.chat_template = None
    assert dialogue(tokenizer, messages) == "User: Who?\nAssistant: Me."
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert dialogue(tokenizer, messages) == "<user>Who?<assistant>Me."
