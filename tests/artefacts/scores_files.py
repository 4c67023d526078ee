"""Scores files for tests."""

from pathlib import Path
from typing import Any

import numpy as np

from loki.artefacts.provenance import Provenance
from loki.artefacts.scores import SampleRecords, ScoresWriter


def make_provenance(**changes: Any) -> Provenance:
    fields: dict[str, Any] = {
        "model": "models/tiny",
        "model_fingerprint": "f00d",
        "definition": "captum",
        "steps": 7,
        "ig_method": "riemann_trapezoid",
        "engine": "fast",
        "quantity": "probability",
        "absolute": False,
        "position": -1,
        "dtype": "float32",
        "source": "q.jsonl",
        "source_digest": "cafe",
        "versions": {},
        "config_digest": "c0de",
    }
    return Provenance(**{**fields, **changes})


def make_records(count: int, first: int = 0, subjects: list[str] | None = None) -> SampleRecords:
    numbers = range(first, first + count)
    return SampleRecords(
        sample_ids=[f"q:{number}" for number in numbers],
        sample_digests=[f"d{number}" for number in numbers],
        subjects=subjects or ["maths" if number % 3 else "history" for number in numbers],
        target_token_ids=np.array(numbers, dtype=np.int64),
        target_probabilities=np.linspace(0, 1, count),
        completeness=np.linspace(0, 0.1, count),
    )


def write_scores(
    path: Path, scores: np.ndarray, *, first: int = 0, subjects: list[str] | None = None, **changes: Any
) -> Path:
    """A scores file with samples `q:<first>`, ...; `changes` go to its provenance."""
    with ScoresWriter(path, *scores.shape[1:], make_provenance(**changes)) as writer:
        writer.append(scores, make_records(len(scores), first, subjects))
    return path
