"""Choosing a part of a data source: by subject, and a seeded number of samples per subject."""

import random
from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches

from loki.calibration.records import Record
from loki.errors import LokiError


def choose_subjects(records: Sequence[Record], subjects: Sequence[str]) -> list[Record]:
    """The records about `subjects`, in their order. Case, and spaces for underscores, do not matter.

    Raises:
        LokiError: if no record is about one of them; names those that are spelt nearly so.
    """
    found = {_normalised(record.subject): record.subject for record in records if record.subject}
    wanted = set()
    for subject in subjects:
        name = _normalised(subject)
        if name not in found:
            near = [found[match] for match in get_close_matches(name, found)]
            known = sorted(found.values())
            listed = ", ".join(near or known[:5]) + ("" if near or len(known) <= 5 else f" and {len(known) - 5} more")
            advice = f"did you mean {listed}?" if near else f"the data has {listed or 'no subjects'}"
            raise LokiError(f"subject {subject!r} is not in the data: {advice}")
        wanted.add(name)
    return [record for record in records if _normalised(record.subject) in wanted]


def choose_samples(records: Sequence[Record], per_subject: int, seed: int) -> list[Record]:
    """At most `per_subject` records of every subject, drawn evenly, in their order.

    What is drawn for a subject depends on the seed and on its records alone, not on the other subjects.

    Raises:
        LokiError: if `per_subject` is below 1.
    """
    if per_subject < 1:
        raise LokiError(f"samples per subject is {per_subject}: give a number of at least 1, or leave it out for all")
    by_subject: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_subject[record.subject].append(index)
    chosen: list[int] = []
    for subject, indices in by_subject.items():
        generator = random.Random(f"{seed}/{subject}")
        chosen += generator.sample(indices, min(per_subject, len(indices)))
    return [records[index] for index in sorted(chosen)]


def _normalised(subject: str) -> str:
    return subject.strip().lower().replace(" ", "_")
