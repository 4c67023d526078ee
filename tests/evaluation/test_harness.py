"""Tasks of lm-evaluation-harness, run for real on tiny models and local files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.evaluation.ablation import AblationOptions, ablate
from loki.evaluation.compare import Comparison, compare
from loki.evaluation.harness import Harness, TaskOptions, _kept
from loki.evaluation.lm_eval_results import PAPER_METRICS, tasks_in
from loki.evaluation.measure import MeasureOptions, evaluate, load, save_result
from loki.evaluation.subjects import find_subject
from loki.evaluation.verdict import Limits
from loki.implanting.create import create_loki_model
from loki.models.loading import load_model, load_tokenizer
from loki.restoring.suppress import set_zero_weights
from tests.artefacts.scores_files import write_scores
from tests.evaluation.harness_tasks import ANSWERS, QUESTIONS, QUIZ, TASKS, WORDS, write_tasks
from tests.evaluation.models import save_changed, save_loki_adapter
from tests.tiny_models import tiny_model, tiny_tokenizer

# The harness alone takes seconds to import, so that is left to the tests.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `eval` is not installed"),
]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOKI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


def measured(folder: Path, *tasks: str, limit: int | None = None) -> MeasureOptions:
    return MeasureOptions(texts=None, tasks=TaskOptions(tasks, folder, limit), metrics={WORDS: "acc,none"})


def compared(base: Path, new: Path, options: MeasureOptions) -> Comparison:
    [found] = compare(str(base), [str(new)], options, Limits())
    return found


def chosen(directory: Path, question: str, choices: list[str]) -> int:
    """The choice that a model finds most likely after a question, by its logits alone."""
    model, tokenizer = load_model(directory, dtype="float32"), load_tokenizer(directory)
    start = len(tokenizer(question, add_special_tokens=False).input_ids)
    likelihoods = []
    for choice in choices:
        ids = torch.tensor([tokenizer(f"{question} {choice}", add_special_tokens=False).input_ids])
        with torch.no_grad():
            log_probabilities = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        likelihoods.append(float(log_probabilities.gather(1, ids[0, start:, None]).sum()))
    return likelihoods.index(max(likelihoods))


def test_items_are_right_where_the_logits_say_so(llama_dir: Path, folder: Path) -> None:
    result = evaluate(find_subject(llama_dir), measured(folder, *TASKS))
    quiz = result.tasks[QUIZ]
    expected = {
        record["question"]: chosen(llama_dir, record["question"], record["choices"]) == record["answer"]
        for record in QUESTIONS
    }
    assert {item.prompt: bool(item.score) for item in quiz.items.values()} == expected
    assert (quiz.metric, quiz.chance, quiz.fewshot) == ("acc,none", pytest.approx(1 / 3), 0)
    assert (result.tasks[WORDS].metric, result.tasks[WORDS].chance) == ("acc,none", 0)
    assert result.tasks[ANSWERS].metric == "exact_match,whole"
    assert [len(task.items) for task in result.tasks.values()] == [10, 10, 10]


def test_answers_are_kept_until_something_changes(llama_dir: Path, folder: Path, tmp_path: Path) -> None:
    def run(directory: Path, *tasks: str, limit: int | None = None) -> int:
        options = measured(folder, *tasks, limit=limit)
        harness, loaded = Harness(options.tasks), load(find_subject(directory), options)
        results = harness.run(loaded.fingerprint, loaded.model, loaded.tokenizer)
        assert set(tasks_in(results, options.metrics)) == set(tasks)
        return harness.evaluated

    assert run(llama_dir, QUIZ) == 1
    assert run(llama_dir, QUIZ, WORDS) == 1
    assert run(llama_dir, QUIZ, WORDS) == 0
    changed = save_changed(llama_dir, tmp_path / "changed", DOWN, 0.5)
    assert run(changed, QUIZ) == 1
    assert run(llama_dir, QUIZ, limit=4) == 1
    data = folder / "questions.jsonl"
    data.write_text(data.read_text().replace("many", "few"))
    assert run(llama_dir, QUIZ) == 1


def test_a_model_and_its_results_are_one(llama_dir: Path, folder: Path, tmp_path: Path) -> None:
    options = measured(folder, QUIZ, WORDS, limit=6)
    damaged = save_changed(llama_dir, tmp_path / "damaged", DOWN, 3.0)
    save_result(tmp_path / "before.json", evaluate(find_subject(llama_dir), options))
    from_models, from_file = (compared(base, damaged, options) for base in (llama_dir, tmp_path / "before.json"))
    assert from_models.tasks == from_file.tasks
    assert [task.items for task in from_models.tasks] == [6, 6]
    itself = compared(tmp_path / "before.json", llama_dir, options)
    assert itself.identical
    assert [(task.flips.lost, task.flips.gained) for task in itself.tasks if task.flips] == [([], []), ([], [])]
    with pytest.raises(LokiError, match=r"\b6 .*\b10\b"):
        compared(tmp_path / "before.json", damaged, measured(folder, QUIZ, WORDS))
    with pytest.raises(LokiError, match=WORDS):
        compared(tmp_path / "before.json", damaged, measured(folder, QUIZ, limit=6))


def test_rows_at_zero_answer_as_the_model_without_them(llama_dir: Path, folder: Path, tmp_path: Path) -> None:
    rows = np.arange(32, dtype=np.float32)
    scores = write_scores(tmp_path / "scores.h5", np.broadcast_to(rows, (4, 3, 32)).copy())
    options = measured(folder, QUIZ)
    found = ablate(find_subject(llama_dir), scores, AblationOptions((90,), (0,)), replace(options, texts=()))
    assert found.base_scores == {QUIZ: evaluate(find_subject(llama_dir), options).tasks[QUIZ].scores.mean()}
    write_positions(tmp_path / "positions.json", [list(range(4, 32))] * 3)  # 28 of 32 rows
    suppressed = set_zero_weights(llama_dir, tmp_path / "positions.json", tmp_path / "zero")
    [point] = [point for point in found.points if point.order == "highest signed"]
    assert point.scores == {QUIZ: evaluate(find_subject(suppressed), options).tasks[QUIZ].scores.mean()}


LM_EVAL = """
import json, sys
from functools import partial
from importlib.util import find_spec
import lm_eval, lm_eval.__main__, lm_eval.tasks
assert "loki" not in sys.modules, "nothing of LoKI may be imported by hand"
# Without the harness' own thousands of tasks, which take long to be read.
lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
sys.argv = ["lm_eval", *{words!r}]
lm_eval.__main__.cli_evaluate()
results = lm_eval.simple_evaluate(
    model="hf", model_args={arguments!r}, tasks=[{task!r}], device="cpu", bootstrap_iters=0,
    task_manager=lm_eval.tasks.TaskManager(include_path={folder!r}),
)
with open("adapter.json", "w") as file:
    json.dump(results["samples"], file, default=str)
"""


def test_the_harness_itself_evaluates_what_loki_makes(folder: Path, tmp_path: Path) -> None:
    """`lm_eval --model hf` in a process that never imports LoKI, on a LoKI model and on a LoKI adapter."""
    base = tmp_path / "base"
    # The harness cuts embeddings down to the tokenizer where there is an adapter.
    tiny_model("llama", vocab_size=len(tiny_tokenizer())).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    (tmp_path / "positions.json").write_text("[[0, 1], [2], []]")
    loki = Path(
        create_loki_model(model_name=base, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "loki")
    )
    adapter = save_loki_adapter(base, tmp_path / "adapter")

    words = ["--model", "hf", "--model_args", f"pretrained={loki},dtype=float32", "--tasks", f"{QUIZ},{WORDS}"]
    words += ["--include_path", str(folder), "--output_path", str(tmp_path / "out"), "--log_samples", "--device", "cpu"]
    arguments = f"pretrained={base},peft={adapter},dtype=float32"
    run(LM_EVAL.format(words=words, arguments=arguments, task=WORDS, folder=str(folder)), tmp_path)

    options = measured(folder, QUIZ, WORDS)
    for found in (
        compared(tmp_path / "out", loki, options),
        compared(loki, next((tmp_path / "out").rglob("results_*.json")), options),
    ):
        assert [task.items for task in found.tasks] == [10, 10]
        assert [(task.flips.lost, task.flips.gained) for task in found.tasks if task.flips] == [([], []), ([], [])]

    theirs = likelihoods(json.loads((tmp_path / "adapter.json").read_text())[WORDS])
    for directory, same in ((adapter, True), (base, False)):
        loaded = load(find_subject(directory), options)
        ours = Harness(options.tasks).run(loaded.fingerprint, loaded.model, loaded.tokenizer)["samples"][WORDS]
        assert (likelihoods(ours) == pytest.approx(theirs, rel=1e-4)) is same


def likelihoods(samples: list[dict[str, Any]]) -> dict[str, float]:
    return {sample["arguments"][0][0]: float(sample["filtered_resps"][0][0]) for sample in samples}


def run(code: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_DATASETS_CACHE": str(folder / "datasets"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_the_paper_reports_is_what_the_harness_calls_so() -> None:
    """The metrics of `--suite paper`, against the task files of the installed release."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent / "tasks"
    files = {task: home / task / f"{task}.yaml" for task in PAPER_METRICS}
    files |= {task: home / task / "default.yaml" for task in ("triviaqa", "winogrande")}
    for task, metric in PAPER_METRICS.items():
        name, _, chosen_filter = metric.partition(",")
        text = files[task].read_text()
        assert f"task: {task}" in text
        if task == "humaneval":  # the only metric is a function of its own, pass@k with k: [1]
            assert "utils.pass_at_k" in text
            assert "k: [1]" in text
        else:
            assert f"metric: {name}" in text
        filters = {line.split("name:")[1].strip(" \"'") for line in text.splitlines() if "- name:" in line}
        assert chosen_filter in (filters or {"none"})


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_results_are_not_kept_ones(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_bytes(content)
    assert _kept(tmp_path / "task.json") is None
    (tmp_path / "task.json").write_text('{"results": {}}')
    assert _kept(tmp_path / "task.json") == {"results": {}}


def test_bad_tasks(folder: Path, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks as lm_eval_tasks

    # Without the harness' own thousands of tasks, which take long to be read.
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", partial(lm_eval_tasks.TaskManager, include_defaults=False))
    with pytest.raises(LokiError, match=r"task nonsense is not known to lm-evaluation-harness \d"):
        Harness(TaskOptions((QUIZ, "nonsense"), folder))
    with pytest.raises(LokiError, match="nowhere"):
        Harness(TaskOptions((QUIZ,), tmp_path / "nowhere"))
    with pytest.raises(LokiError, match="--limit 0"):
        Harness(TaskOptions((QUIZ,), folder, limit=0))
    with pytest.raises(LokiError, match=f"{QUIZ}.*bleu,none.*acc,none"):
        evaluate(find_subject(llama_dir), MeasureOptions(None, None, TaskOptions((QUIZ,), folder), {QUIZ: "bleu,none"}))
    shutil.rmtree(tmp_path / "cache")
    (folder / "questions.jsonl").unlink()
    with pytest.raises(LokiError, match=f"{QUIZ} cannot"):
        evaluate(find_subject(llama_dir), measured(folder, QUIZ))
