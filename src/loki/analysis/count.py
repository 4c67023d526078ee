"""Selecting rows without a scores file: samples are counted as they are computed, in O(L * D) memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from loki.analysis.job import begin, prepare
from loki.analysis.options import AnalysisOptions
from loki.analysis.runner import run
from loki.analysis.selection_counts import CountingLog, SelectionCounts
from loki.analysis.stability import StabilityRule
from loki.analysis.work_folder import WorkFolder, work_folder_of
from loki.artefacts.positions import Positions, positions_file_name, read_positions, write_positions
from loki.errors import LokiError
from loki.files import protect_inputs, refuse_existing
from loki.kva.settings import AttributionSettings
from loki.models.model_directory import AnyModel
from loki.ranks import Ranks
from loki.selection.strategies import SelectionSettings


@dataclass(frozen=True)
class CountedSelections:
    """What counting left behind.

    Attributes:
        paths: the positions file of every quota.
        samples: number of samples counted.
        completeness: median over the samples that this process computed now, see `loki.kva.attributor.Attribution`;
            0 is exact integration. NaN if there were none.
    """

    paths: dict[float, Path]
    samples: int
    completeness: float


def count_selections(
    model: AnyModel,
    source: str,
    output: Path,
    quotas: Sequence[float],
    settings: AttributionSettings | None = None,
    options: AnalysisOptions | None = None,
    *,
    selection: SelectionSettings | None = None,
    overwrite: bool = False,
    until_stable: float | None = None,
    progress: Progress | None = None,
) -> CountedSelections:
    """Analyse a model and write the positions files for some quotas; no scores are kept.

    The result is the same as that of `analyse` and `select`. The counts are kept in `<output>.partial/` until the
    files are written; the same call continues there after an interruption of any kind.

    Args:
        model: local directory or hub id.
        source: calibration data, see `loki.calibration.sources.load_calibration`.
        output: folder for the files `<quota>.json`.
        quotas: percentages of the rows, each above 0 and at most 100.
        settings: what is attributed, definition, steps and so on (default: as published).
        options: batch size, device and so on (default: everything chosen automatically).
        selection: a strategy that counts, and what belongs to it (default: the published one).
        overwrite: replace existing files; discard an interrupted run with other settings.
        until_stable: stop when the selections for all quotas overlap by this much with those at the checkpoint
            before, see `StabilityRule` (default: never).
        progress: where to show how far the analysis has come (default: nowhere).

    Raises:
        LokiError: if something cannot be used or written, or there is an output or an interrupted run that does not
            fit; one line that says what to do.
        CheckFailed: if a sample that was to be checked differs from Captum.
    """
    if not quotas:
        raise LokiError("no quota is given: pass --quota, for example --quota 10 or --quota 5,10,20,30")
    if output.exists() and not output.is_dir():
        raise LokiError(f"{output} is a file: name a folder for the positions files")
    protect_inputs(output, model, source)
    paths = {quota: output / positions_file_name(quota) for quota in quotas}
    work = work_folder_of(output)
    rule = StabilityRule(until_stable) if until_stable is not None else None
    selection = selection or SelectionSettings()
    ranks = Ranks.current()
    settings = settings or AttributionSettings()
    if settings.per_expert:
        raise LokiError("--per-expert belongs to a scores file, and --no-log writes none: leave out one of them")
    job = prepare(model, source, settings, ranks, options or AnalysisOptions())
    log = CountingLog(work, SelectionCounts(selection, quotas, job.layers, job.hidden), ranks.index, keep_batches=False)
    with ExitStack() as stack:
        ranks.on_main(lambda: stack.enter_context(work.hold()))
        ranks.on_main(lambda: _refuse_existing(work, paths, overwrite=overwrite))
        identity = {
            **job.identity(),
            "strategy": selection.strategy,
            "by": str(selection.by),
            "quotas": list(quotas),
            "until_stable": until_stable,
        }
        job = ranks.on_main(lambda: begin(job, work, identity, overwrite=overwrite)).on(job.device)
        batches = job.batches()
        outcome = run(job, batches, work, ranks, log=log, rule=rule, progress=progress)
        ranks.on_main(lambda: _write(log.total(), outcome.batches, paths, overwrite=overwrite))
        ranks.on_main(work.remove)
    samples = sum(len(batches[number]) for number in outcome.batches)
    return CountedSelections(paths, samples, float(np.median(outcome.completeness or [np.nan])))


def _refuse_existing(work: WorkFolder, paths: dict[float, Path], *, overwrite: bool) -> None:
    if not work.begun:  # files that an interrupted run has written already are not in its way
        for path in paths.values():
            refuse_existing(path, overwrite=overwrite)


def _write(total: SelectionCounts, expected: set[int], paths: dict[float, Path], *, overwrite: bool) -> None:
    if total.batches != expected:
        raise LokiError(
            f"{len(total.batches)} of {len(expected)} batches were counted: are all processes on one file system? "
            "Run the same command again to compute the others"
        )
    for quota, positions in total.positions().items():
        if not _holds(paths[quota], positions):
            write_positions(paths[quota], positions, overwrite=overwrite)


def _holds(path: Path, positions: Positions) -> bool:
    return path.exists() and read_positions(path) == positions
