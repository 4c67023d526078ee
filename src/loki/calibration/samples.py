"""What a data source becomes: encoded prompts, each with the token whose score is attributed."""

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One prompt, ready for the model.

    Attributes:
        id: unique in its set and the same in every run.
        subject: what it is about; empty if the data does not say.
        input_ids: the prompt's token ids, without padding.
        target: token id whose probability after the prompt is attributed; None for the model's own argmax.
    """

    id: str
    subject: str
    input_ids: list[int]
    target: int | None


@dataclass(frozen=True)
class CalibrationSet:
    """The samples of one source, in its order.

    Attributes:
        source: as the user named it.
        digest: SHA-256 (hex) over all that the samples hold; equal digests mean equal work.
        samples: at least one.
    """

    source: str
    digest: str
    samples: list[Sample]


def digest_of_sample(sample: Sample) -> str:
    """Hash over what is attributed of a sample: token ids and target. Equal digests mean equal scores."""
    return hashlib.sha256(json.dumps([sample.input_ids, sample.target]).encode()).hexdigest()[:32]


def digest_of(samples: list[Sample]) -> str:
    """SHA-256 (hex) over ids, subjects, token ids and targets, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps([sample.id, sample.subject, digest_of_sample(sample)]).encode())
    return digest.hexdigest()
