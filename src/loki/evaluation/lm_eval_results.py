"""Results of lm-evaluation-harness: reading its files, and the items in them. Needs no harness to be installed."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loki.errors import LokiError
from loki.evaluation.items import Item, TaskItems
from loki.evaluation.result_schema import MEASURE_AGAIN, ResultsFile
from loki.inputs import checked, read_json

Results = dict[str, Any]

# What the suite of the paper is scored by.
PAPER_METRICS = {
    "triviaqa": "exact_match,remove_whitespace",
    "gsm8k": "exact_match,flexible-extract",
    "hellaswag": "acc_norm,none",
    "winogrande": "acc,none",
    "humaneval": "pass@1,create_test",
    "ifeval": "prompt_level_strict_acc,none",
}
PAPER_SUITE = tuple(PAPER_METRICS)


def is_results(path: Path) -> bool:
    """Whether `path` is a file of results, or a directory of them and no model."""
    if path.is_file():
        return path.suffix == ".json"
    return path.is_dir() and not (path / "config.json").is_file() and bool(_result_files(path))


def read_results(path: Path) -> Results:
    """Read results with their samples: of `loki evaluate`, or of `lm_eval --output_path DIR --log_samples`.

    Args:
        path: a file, or a directory, of which the latest results are taken.

    Raises:
        LokiError: if there is none, or the answers to the single questions were not kept.
    """
    file = path if path.is_file() else max(_result_files(path), key=_date)
    results = read_json(file, what="results")
    if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
        raise LokiError(f"{file} holds no results of lm-evaluation-harness or `loki evaluate`: name another file")
    checked(ResultsFile, results, f"results {file}", advice=MEASURE_AGAIN)
    if results.get("samples") is None:
        found = {task: _samples_beside(file, task) for task in results.get("configs", {})}
        if missing := next((task for task, samples in found.items() if samples is None), None):
            raise LokiError(
                f"{file} has no samples of task {missing}: evaluate again with `lm_eval --log_samples`, because models "
                "are compared item by item"
            )
        results["samples"] = found
    return results


def tasks_in(results: Results, metrics: Mapping[str, str] | None = None) -> dict[str, TaskItems]:
    """The items of every task.

    Args:
        results: as `lm_eval.simple_evaluate` returns them, with samples.
        metrics: which metric to take, by task; else that of the paper, or the first.

    Raises:
        LokiError: if a task has no metric of single items, or not the one asked for.
    """
    return {task: _task(results, task, (metrics or {}).get(task)) for task in sorted(results["samples"])}


def _task(results: Results, task: str, metric: str | None) -> TaskItems:
    samples: Sequence[dict[str, Any]] = results["samples"][task]
    config = results.get("configs", {}).get(task, {})
    known = _metrics(samples)
    if not known:
        raise LokiError(f"task {task} has no metric that is a number for every item: leave it out")
    wanted = metric or (PAPER_METRICS.get(task) if PAPER_METRICS.get(task) in known else None) or known[0]
    if wanted not in known:
        raise LokiError(f"task {task} has no metric {wanted}: choose one of {', '.join(known)}")
    name, _, chosen = wanted.partition(",")
    items, chances = {}, []
    for sample in samples:
        if sample.get("filter", "none") == chosen and name in sample:
            identity = f"{sample['doc_id']} {sample.get('doc_hash', '')}".strip()
            items[identity] = _item(sample, float(sample[name]))
            chances.append(1 / len(sample["resps"]))
    choosing = config.get("output_type") == "multiple_choice"
    better = results.get("higher_is_better", {}).get(task, {}).get(name, True)
    return TaskItems(
        task=task,
        metric=wanted,
        items=items,
        fewshot=int(results.get("n-shot", {}).get(task) or 0),
        version=str(results.get("versions", {}).get(task, "")),
        higher_is_better=better is not False,
        chance=sum(chances) / len(chances) if choosing and name.startswith("acc") else 0.0,
        setting=_setting(results),
    )


def _metrics(samples: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the metrics that are a number for every item, in the order of the task."""
    names = dict.fromkeys(
        f"{name},{sample.get('filter', 'none')}"
        for sample in samples
        for name in sample.get("metrics", ("acc", "acc_norm", "exact_match"))
        if isinstance(sample.get(name), int | float)
    )
    return list(names)


def _item(sample: dict[str, Any], score: float) -> Item:
    arguments = sample.get("arguments") or [[""]]
    first = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    prompt = first.get("arg_0", "") if isinstance(first, dict) else first[0]
    answer, choices = sample.get("filtered_resps", ""), sample.get("resps", [])
    if len(choices) > 1 and isinstance(answer, list):  # the choice of the highest log-likelihood
        likelihoods = [float(choice[0]) for choice in answer]
        answer = f"choice {likelihoods.index(max(likelihoods))}"
    elif isinstance(answer, list) and answer:
        answer = answer[0] if isinstance(answer[0], str) else f"log-likelihood {answer[0][0]}"
    return Item(score, str(prompt), str(sample.get("target", "")), str(answer))


def _setting(results: Results) -> str:
    parts = []
    if results.get("chat_template_sha"):
        parts.append(f"chat template {results['chat_template_sha'][:8]}")
    if results.get("system_instruction_sha"):
        parts.append(f"system instruction {results['system_instruction_sha'][:8]}")
    return ", ".join(parts) or "no chat template"


def _result_files(directory: Path) -> list[Path]:
    return [*directory.glob("results_*.json"), *directory.glob("*/results_*.json")]


def _date(file: Path) -> str:
    return file.stem.partition("_")[2]


def _samples_beside(file: Path, task: str) -> list[dict[str, Any]] | None:
    match = re.search(r"\d{4}-\d\d-\d\dT.*$", file.stem)
    path = file.parent / f"samples_{task}_{match[0] if match else ''}.jsonl"
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise LokiError(f"{path} is not JSON Lines ({error}): copy it again") from error
