"""Calibration data for tests: random prompts, encoded already."""

import json
import random
from pathlib import Path


def write_prompts(path: Path, count: int, *, seed: int = 0, first: int = 0) -> list[list[int]]:
    """Write `count` prompts of 3 to 9 tokens on two subjects, and return their token ids.

    The first prompts are the same whatever `count` is; `first` leaves out so many.
    """
    chance = random.Random(seed)
    prompts = [[chance.randrange(8, 320) for _ in range(chance.randrange(3, 10))] for _ in range(count)][first:]
    records = [
        {"input_ids": prompt, "subject": "maths" if index % 2 else "history"} for index, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return prompts
