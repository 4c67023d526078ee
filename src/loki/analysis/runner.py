"""The main loop of an analysis: this process's share of the batches, stored one by one as they are finished."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from rich.progress import Progress

from loki.analysis.batch_computer import BatchComputer
from loki.analysis.batches import Batch, processing_order
from loki.analysis.job import Job
from loki.analysis.selection_counts import CountingLog
from loki.analysis.stability import StabilityRule, checkpoints
from loki.analysis.work_folder import WorkFolder
from loki.ranks import Ranks


@dataclass(frozen=True)
class Outcome:
    """What the loop has done.

    Attributes:
        batches: numbers of the batches that make up the result.
        completeness: of the samples that this process has computed; the others were there already, or came from other
            processes.
    """

    batches: set[int]
    completeness: list[float]

    @property
    def computed(self) -> int:
        """Number of samples that this process has computed."""
        return len(self.completeness)


def run(
    job: Job,
    batches: Sequence[Batch],
    work: WorkFolder,
    ranks: Ranks,
    *,
    log: CountingLog | None,
    rule: StabilityRule | None,
    progress: Progress | None,
) -> Outcome:
    """Compute all batches that are not done yet, each in one process, and store them in the work folder.

    Args:
        job: what is computed.
        batches: sample indices of every batch.
        work: where the results go.
        ranks: the processes that share the work.
        log: where to count the results as well; None to store them only.
        rule: when to stop early (needs `log`); None to compute everything.
        progress: where to show how far the main process has come.
    """
    if rule:
        rule.resume(work.stability)
    order = processing_order(len(batches), job.options.seed)
    done = ranks.on_main(log.resume if log else work.stored_batches)
    bar = _Bar(progress if ranks.main else None, ranks, total=len(job.samples))
    bar.start(sum(len(batches[number]) for number in done))
    completeness: list[float] = []

    def compute(computer: BatchComputer, numbers: Sequence[int]) -> None:
        """This process's share of the batches `numbers`, or less if another process fails."""
        try:
            for number, results in computer.results(numbers[ranks.index :: ranks.count]):
                work.write_batch(number, results)
                if log:
                    log.add(number, results)
                completeness.extend(results.completeness.tolist())
                bar.advance(len(results.indices))
                if work.stopped:
                    break
            if log:
                log.flush()
        except Exception:
            work.stop()
            raise

    with BatchComputer(job, batches) as computer:
        if len(done) < len(batches) or job.options.check:
            computer.settle_memory_budget(work, ranks)
        ranks.on_all(lambda: computer.check_done(sorted(done)[ranks.index :: ranks.count], work))
        start = 0
        for checkpoint, end in enumerate(checkpoints(batches, order) if rule else [len(order)]):
            todo = [number for number in order[start:end] if number not in done]
            ranks.on_all(partial(compute, computer, todo))
            if rule and log and ranks.on_main(partial(_stable, rule, log, checkpoint)):
                return Outcome(set(order[:end]), completeness)
            start = end
    return Outcome(set(order), completeness)


def _stable(rule: StabilityRule, log: CountingLog, checkpoint: int) -> bool:
    """Whether to stop at a checkpoint, which may have been observed before an interruption."""
    if rule.observed > checkpoint:
        return rule.stable and rule.observed == checkpoint + 1
    return rule.observe(log.total().positions())


class _Bar:
    """Progress of all processes, as seen from the main one: the others are taken to be as fast."""

    def __init__(self, progress: Progress | None, ranks: Ranks, total: int) -> None:
        self._progress = progress
        self._ranks = ranks
        self._total = total
        self._computed = 0

    def start(self, done: int) -> None:
        """Show the bar, with `done` samples done before."""
        self._began = time.monotonic()
        if self._progress:
            self._task = self._progress.add_task("Analysing", total=self._total, completed=done)

    def advance(self, samples: int) -> None:
        """Count samples of this process."""
        if self._progress:
            self._computed += samples * self._ranks.count
            rate = self._computed / (time.monotonic() - self._began)
            self._progress.update(
                self._task, advance=samples * self._ranks.count, description=f"Analysing, {rate:.3g} samples/s"
            )
