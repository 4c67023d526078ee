"""New tasks for a language model: facts with their paraphrases, and calls of functions that were never trained."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facts import Fact, invented_facts, read_facts, read_records

from loki.metrics.accuracy import Question


@dataclass(frozen=True)
class Task:
    """What a model is to learn.

    Attributes:
        name: in results.
        trained: prompts with the answers that are trained.
        held_out: what shows that more was learned than these words: paraphrases, or calls of other functions; it may
            be empty.
    """

    name: str
    trained: list[Question]
    held_out: list[Question]


def facts_task(facts: list[Fact]) -> Task:
    """Facts, with their paraphrases held out."""
    return Task(
        "facts",
        [Question("facts", fact.question, fact.answer) for fact in facts],
        [Question("facts", fact.paraphrase, fact.answer) for fact in facts if fact.paraphrase],
    )


def calls_task(questions: Path, answers: Path, count: int, seed: int, *, longest: int = 700) -> Task:
    """Calls of functions that the prompt describes, each function in one half only.

    Args:
        questions: JSONL of the Berkeley Function Calling Leaderboard: `id`, `question`, `function`.
        answers: its `ground_truth` by `id`; of several right values the first counts, and what may be left out, is.
        count: calls to train, and as many to hold out.
        seed: which.
        longest: letters of a prompt at most.
    """
    truths = {record["id"]: record["ground_truth"][0] for record in read_records(answers)}
    found: dict[str, Question] = {}
    for record in read_records(questions):
        (function,), ((asked,),) = record["function"], record["question"]
        described = {"name": function["name"], "parameters": _types(function["parameters"])}
        prompt = f"Function: {json.dumps(described)}\nQuestion: {asked['content']}\nCall:"
        if len(prompt) <= longest:
            found.setdefault(function["name"], Question("calls", prompt, _call(truths[record["id"]])))
    chosen = random.Random(seed).sample(list(found.values()), 2 * count)
    return Task("calls", chosen[:count], chosen[count:])


def task_maker(
    *, facts: Path | None, fact_count: int, calls: tuple[Path, Path] | None, call_count: int
) -> Callable[[str, int], list[Task]]:
    """Makes the tasks that a name stands for, one after another, for a seed.

    `facts`, `calls`, and `sequence`: facts, then calls, then other facts.
    """

    def some_facts(seed: int) -> Task:
        return facts_task(read_facts(facts) if facts else invented_facts(fact_count, seed))

    def some_calls(seed: int) -> Task:
        if calls is None:
            raise SystemExit("the plan has tool calls: give --calls and --call-answers")
        return calls_task(*calls, call_count, seed)

    def tasks(name: str, seed: int) -> list[Task]:
        if name == "sequence":
            return [some_facts(seed), some_calls(seed), some_facts(seed + 1000)]
        known = {"facts": some_facts, "calls": some_calls}
        if name not in known:
            raise SystemExit(f"no task is called {name!r}: facts, calls or sequence")
        return [known[name](seed)]

    return tasks


def _types(parameters: dict[str, Any]) -> dict[str, str]:
    return {name: value["type"] for name, value in parameters["properties"].items()}


def _call(truth: dict[str, dict[str, list[Any]]]) -> str:
    ((name, arguments),) = truth.items()
    given = {key: values[0] for key, values in arguments.items() if "" not in values}
    return f"{name}({', '.join(f'{key}={json.dumps(value)}' for key, value in given.items())})"
