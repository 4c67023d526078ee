"""The demo's two data files: calibration questions to analyse the model with, and facts to train it on."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loki.demo.world import World
from loki.files import atomic_file
from loki.metrics.accuracy import Question

CALIBRATION_PER_FAMILY = 64


def write_calibration(path: Path, world: World, *, overwrite: bool = False) -> None:
    """Questions on old knowledge, as many of every family, each with the word that should come next.

    Where an answer has several words the prompt includes some of them, so that every step of it is analysed.

    Raises:
        LokiError: if `path` exists and `overwrite` is False.
    """
    chance = random.Random(0)
    records = []
    for family, questions in world.trained.items():
        for question in chance.sample(questions, CALIBRATION_PER_FAMILY):
            answer = question.answer.split()
            given = chance.randrange(len(answer))
            prompt = " ".join([question.prompt, *answer[:given]])
            records.append({"prompt": prompt, "target": f" {answer[given]}", "subject": family})
    _write_jsonl(path, records, overwrite=overwrite)


def write_facts(path: Path, facts: Iterable[Question], *, overwrite: bool = False) -> None:
    """Questions as training records `{"prompt", "completion"}`.

    Raises:
        LokiError: if `path` exists and `overwrite` is False.
    """
    records = [{"prompt": fact.prompt, "completion": f" {fact.answer}"} for fact in facts]
    _write_jsonl(path, records, overwrite=overwrite)


def _write_jsonl(path: Path, records: Iterable[Mapping[str, Any]], *, overwrite: bool) -> None:
    with atomic_file(path, overwrite=overwrite) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
