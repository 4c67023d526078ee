"""From the stored batches of a run to one scores file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loki.analysis.batches import Batch, windows
from loki.analysis.job import Job
from loki.analysis.work_folder import WorkFolder
from loki.artefacts.expert_scores import ExpertScores
from loki.artefacts.provenance import Provenance
from loki.artefacts.scores import SampleRecords, ScoresReader, ScoresWriter
from loki.calibration.samples import digest_of_sample
from loki.errors import LokiError
from loki.files import replace_durably


def assemble(
    job: Job,
    batches: Sequence[Batch],
    chosen: set[int],
    work: WorkFolder,
    output: Path,
    *,
    after: Path | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Write the scores file from stored batches, in the order of the samples, and put it in its place when it is whole.

    Args:
        job: what was computed.
        batches: sample indices of every batch.
        chosen: numbers of the batches that make up the file.
        work: where they are stored.
        output: the scores file; one that is there is replaced.
        after: scores file whose samples come first.
        provenance: what the file says of its origin (default: the job's).

    Raises:
        LokiError: if a sample is missing or there twice, or the file cannot be written. The batches stay.
    """
    missing = chosen - work.stored_batches()
    if missing:
        raise LokiError(
            f"{len(missing)} of {len(chosen)} batches did not arrive in {work.path}: are all processes on one file "
            "system? Run the same command again to compute them"
        )
    try:
        with ScoresWriter(work.assembled, job.layers, job.hidden, provenance or job.provenance) as writer:
            if after is not None:
                with ScoresReader(after) as reader:
                    copy_samples(reader, writer)
            for scores, records, experts in _in_order(job, batches, chosen, work):
                writer.append(scores, records, experts)
    except OSError as error:
        work.assembled.unlink(missing_ok=True)
        raise LokiError(
            f"{output} cannot be written ({error}): free some space and run the same command again; nothing is lost"
        ) from error
    replace_durably(work.assembled, output)


def copy_samples(reader: ScoresReader, writer: ScoresWriter) -> None:
    """Append all samples of one file to another."""
    for start, scores in reader.chunks():
        stop = start + len(scores)
        writer.append(scores, reader.records.part(start, stop), reader.expert_scores(start, stop))


def _in_order(
    job: Job, batches: Sequence[Batch], chosen: set[int], work: WorkFolder
) -> Iterator[tuple[NDArray[np.float32], SampleRecords, ExpertScores]]:
    for window in windows(batches):
        parts = [work.read_batch(number) for number in window if number in chosen]
        if not parts:
            continue
        indices = np.concatenate([part.indices for part in parts])
        expected = sorted(index for number in window if number in chosen for index in batches[number])
        order = np.argsort(indices, kind="stable")
        if indices[order].tolist() != expected:
            raise LokiError(f"{work.path} does not hold every sample exactly once: run again with --overwrite")
        samples = [job.samples[index] for index in expected]
        yield (
            np.concatenate([part.scores for part in parts])[order],
            SampleRecords(
                sample_ids=[sample.id for sample in samples],
                sample_digests=[digest_of_sample(sample) for sample in samples],
                subjects=[sample.subject for sample in samples],
                target_token_ids=np.concatenate([part.targets for part in parts])[order],
                target_probabilities=np.concatenate([part.probabilities for part in parts])[order],
                completeness=np.concatenate([part.completeness for part in parts])[order],
            ),
            ExpertScores.joined([part.experts for part in parts], [len(part.indices) for part in parts], order),
        )
