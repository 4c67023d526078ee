"""Analysing a model: from calibration data to a scores file, in any number of processes and attempts."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from loki.analysis.assemble import assemble
from loki.analysis.batch_computer import BatchComputer
from loki.analysis.captum_check import random_choice
from loki.analysis.job import Job, begin, prepare
from loki.analysis.options import AnalysisOptions
from loki.analysis.runner import run
from loki.analysis.selection_counts import CountingLog, SelectionCounts
from loki.analysis.stability import StabilityRule
from loki.analysis.work_folder import work_folder_of
from loki.artefacts.differences import differences
from loki.artefacts.provenance import SCORE_FIELDS, Provenance, combined_provenance
from loki.artefacts.scores import SampleRecords, ScoresReader
from loki.calibration.samples import digest_of_sample
from loki.errors import LokiError
from loki.files import protect_inputs
from loki.kva.settings import AttributionSettings
from loki.models.model_directory import AnyModel
from loki.ranks import Ranks
from loki.selection.strategies import SelectionSettings

DEFAULT_QUOTAS = (10.0,)


@dataclass(frozen=True)
class Analysis:
    """What an analysis left behind.

    Attributes:
        path: the scores file.
        samples: number of samples in it.
        computed: number of samples that this process computed now.
        completeness: median over the samples, see `loki.kva.attributor.Attribution`; 0 is exact integration.
    """

    path: Path
    samples: int
    computed: int
    completeness: float


def analyse(
    model: AnyModel,
    source: str,
    output: Path,
    settings: AttributionSettings | None = None,
    options: AnalysisOptions | None = None,
    *,
    append: bool = False,
    overwrite: bool = False,
    until_stable: float | None = None,
    quotas: Sequence[float] = DEFAULT_QUOTAS,
    progress: Progress | None = None,
) -> Analysis:
    """Score every row of every layer on every sample, and write a scores file.

    Finished batches are stored in `<output>.partial/` until the file is whole. The same call continues there after an
    interruption of any kind, and gives the same `dataset`, byte for byte. Started by `accelerate launch`, the
    processes share the batches.

    Args:
        model: local directory or hub id.
        source: calibration data, see `loki.calibration.sources.load_calibration`.
        output: the scores file. If it is there already and holds what was asked for, nothing is done.
        settings: what is attributed, definition, steps and so on (default: as published).
        options: batch size, device and so on (default: everything chosen automatically).
        append: keep the samples of an existing file and add those it lacks.
        overwrite: replace an existing file; discard an interrupted run with other settings.
        until_stable: stop when the layer-balanced selections for `quotas` overlap by this much with those at the
            checkpoint before, see `StabilityRule` (default: never).
        quotas: percentages that `until_stable` looks at.
        progress: where to show how far the analysis has come (default: nowhere).

    Raises:
        LokiError: if something cannot be used or written, or there is an output or an interrupted run that does not
            fit; one line that says what to do.
        CheckFailed: if a sample that was to be checked differs from Captum.
    """
    if output.is_dir():
        raise LokiError(f"{output} is a directory: name a file for the scores")
    protect_inputs(output, model, source)
    rule = StabilityRule(until_stable) if until_stable is not None else None
    if append and rule:
        raise LokiError(
            "--write-mode a adds all samples that the file lacks, and --until-stable leaves some out: "
            "leave out one of them"
        )
    ranks = Ranks.current()
    full = prepare(model, source, settings or AttributionSettings(), ranks, options or AnalysisOptions())
    work = work_folder_of(output)
    stopping = rule.record(quotas) if rule else {}
    counts = SelectionCounts(SelectionSettings(), quotas, full.layers, full.hidden) if rule else None
    with ExitStack() as stack:
        ranks.on_main(lambda: stack.enter_context(work.hold()))
        missing = ranks.on_main(lambda: _missing(full, output, append, overwrite, stopping))
        if not missing:
            ranks.on_main(work.remove)
            ranks.on_all(lambda: _check_file(full, output, ranks))
            return _summary(output, 0)
        existing = output if append and output.exists() else None
        job = full if len(missing) == len(full.samples) else full.with_samples([full.samples[i] for i in missing])
        identity = {
            **job.identity(),
            "until_stable": [until_stable, *quotas] if rule else None,
            "appends": existing is not None,
        }
        job = ranks.on_main(lambda: begin(job, work, identity, overwrite=overwrite)).on(job.device)
        batches = job.batches()
        log = CountingLog(work, counts, ranks.index, keep_batches=True) if counts else None
        outcome = run(job, batches, work, ranks, log=log, rule=rule, progress=progress)
        ranks.on_main(
            lambda: assemble(
                job,
                batches,
                outcome.batches,
                work,
                output,
                after=existing,
                provenance=replace(_provenance(full, job, existing), stopping=rule.record(quotas) if rule else {}),
            )
        )
        ranks.on_main(work.remove)
    return _summary(output, outcome.computed)


def default_scores_path(model: str | Path) -> Path:
    """Where the published project puts scores: `kva_result/hdf5/<model>/kva_mmlu.h5`."""
    return Path("kva_result", "hdf5", Path(model).resolve().name, "kva_mmlu.h5")


def _missing(job: Job, output: Path, append: bool, overwrite: bool, stopping: dict[str, Any]) -> list[int]:
    """Which samples have to be computed, given what stands at `output`."""
    everything = list(range(len(job.samples)))
    if not output.exists() or (overwrite and not append):
        return everything
    with ScoresReader(output) as reader:
        if reader.provenance is None:
            raise LokiError(
                f"{output} exists already and does not say how its scores were made: choose another --output, "
                "or pass --overwrite to replace it"
            )
        if append:
            return _not_in(job, reader.records, reader.provenance.differences(job.provenance), output)
        different = reader.provenance.differences(job.provenance, (*SCORE_FIELDS, "engine", "source_digest"))
        whole = reader.samples == len(everything)
        if stopping or not whole:
            different += differences(reader.provenance.stopping, stopping, ("until_stable", "quotas"))
        if not different and (whole or stopping):
            return []
    adding = "" if stopping else "; --write-mode a adds samples to it"
    raise LokiError(
        f"{output} exists already ({'; '.join(different) or f'{reader.samples} samples'}): choose another --output, "
        f"or pass --overwrite to replace it{adding}"
    )


def _not_in(job: Job, records: SampleRecords, different: list[str], output: Path) -> list[int]:
    if different:
        raise LokiError(
            f"cannot add to {output}: it was made with other settings (there and now: {'; '.join(different)}): "
            "use the same settings, or another --output"
        )
    known = dict(zip(records.sample_ids, records.sample_digests, strict=True))
    for sample in job.samples:
        if known.get(sample.id, digest_of_sample(sample)) != digest_of_sample(sample):
            raise LokiError(
                f"cannot add to {output}: sample {sample.id} has other tokens there: the data has changed, "
                "choose another --output"
            )
    return [index for index, sample in enumerate(job.samples) if sample.id not in known]


def _check_file(job: Job, output: Path, ranks: Ranks) -> None:
    """Check samples of a finished file against Captum: this process's share of those drawn."""
    samples = {sample.id: sample for sample in job.samples}
    with ScoresReader(output) as reader, BatchComputer(job, []) as computer:
        ids, targets = reader.records.sample_ids, reader.records.target_token_ids
        rows = random_choice(
            [row for row, name in enumerate(ids) if name in samples], job.options.check, job.options.seed
        )
        for row in rows[ranks.index :: ranks.count]:
            computer.check(samples[ids[row]], int(targets[row]), reader.scores(row, row + 1)[0])


def _provenance(full: Job, job: Job, existing: Path | None) -> Provenance:
    """Provenance of the old and the new samples of a file together."""
    if existing is None:
        return job.provenance
    with ScoresReader(existing) as reader:
        ids = reader.records.sample_ids + [sample.id for sample in job.samples]
        if ids == [sample.id for sample in full.samples] or reader.provenance is None:
            return full.provenance
        return combined_provenance([reader.provenance, job.provenance])


def _summary(output: Path, computed: int) -> Analysis:
    with ScoresReader(output) as reader:
        return Analysis(output, reader.samples, computed, float(np.median(reader.records.completeness)))
