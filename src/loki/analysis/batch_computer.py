"""Computing batches with a model of this process, and checking some of the samples with Captum."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from loki.analysis.batches import Batch
from loki.analysis.captum_check import check_sample, random_choice
from loki.analysis.job import Job
from loki.analysis.work_folder import BatchResults, WorkFolder
from loki.artefacts.expert_scores import ExpertScores
from loki.artefacts.scores import check_finite
from loki.calibration.samples import Sample
from loki.errors import LokiError, out_of_memory
from loki.kva.attributor import Attribution, Attributor
from loki.kva.auto import make_attributor
from loki.kva.fast.memory import free_memory
from loki.kva.prompts import PromptError
from loki.kva.settings import Engine
from loki.ranks import Ranks


class BatchComputer:
    """Computes batches of a job; a context manager. The model is loaded when it is needed first.

    Args:
        job: what is computed.
        batches: sample indices of every batch.
    """

    def __init__(self, job: Job, batches: Sequence[Batch]) -> None:
        self._job = job
        self._batches = batches
        self._model: PreTrainedModel | None = None
        self._memory_budget = job.options.memory_budget
        self._to_check = set(random_choice(range(len(job.samples)), job.options.check, job.options.seed))
        self._engines: dict[str, Attributor] = {}
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()

    def results(self, numbers: Sequence[int]) -> Iterator[tuple[int, BatchResults]]:
        """The results of the batches `numbers`, those with samples to check first.

        Raises:
            LokiError: if a sample cannot be attributed, or its scores are not finite.
            CheckFailed: if the scores of a sample that was to be checked are not those of Captum.
        """
        for number in sorted(numbers, key=lambda number: not self._has_samples_to_check(number)):
            results = self._compute(number)
            self._check_batch(results)
            yield number, results

    def check_done(self, numbers: Sequence[int], work: WorkFolder) -> None:
        """Check the samples that are to be checked in batches that an interrupted run has finished.

        Raises:
            CheckFailed: see `results`.
        """
        stored = work.stored_batches()
        for number in filter(self._has_samples_to_check, numbers):
            # A batch that has been counted and removed is computed once more.
            self._check_batch(work.read_batch(number) if number in stored else self._compute(number))

    def check(self, sample: Sample, target: int, scores: NDArray[np.float32]) -> None:
        """Check the scores `[L, D]` of one sample.

        Raises:
            CheckFailed: see `results`.
        """
        check_sample(self._engine("captum"), sample, target, scores, self._job.provenance.dtype)

    def settle_memory_budget(self, work: WorkFolder, ranks: Ranks) -> None:
        """Let all processes, and all that may continue this run, use the same budget: what is free in the main one now.

        How the engine groups its work, and with it the last bits of the scores, depends on the budget.
        """

        def measure() -> int:
            budget = free_memory(self._loaded()) // (ranks.count if self._job.device.type == "cpu" else 1)
            work.record({"memory_budget": budget})
            return budget

        if self._memory_budget is None:
            self._memory_budget = ranks.on_main(measure)

    def _loaded(self) -> PreTrainedModel:
        if self._model is None:
            self._model = self._job.directory.load(
                dtype=self._job.provenance.dtype, device=self._job.device, device_map=self._job.options.device_map
            )
        return self._model

    def _engine(self, name: str) -> Attributor:
        if name not in self._engines:
            settings = replace(self._job.settings, engine=Engine(name))
            engine = make_attributor(self._loaded(), settings, memory_budget=self._memory_budget)
            self._engines[name] = self._entered.enter_context(engine)
        return self._engines[name]

    def _compute(self, number: int) -> BatchResults:
        indices = self._batches[number]
        samples = [self._job.samples[index] for index in indices]
        attributions = _attribute(self._engine(self._job.settings.engine), samples)
        scores = torch.stack([attribution.scores for attribution in attributions]).numpy()
        ids, experts = [sample.id for sample in samples], _expert_scores(attributions)
        check_finite(scores, ids, origin="computed")
        experts.check_finite(ids, origin="computed")
        return BatchResults(
            indices=np.array(indices, dtype=np.int64),
            scores=scores,
            targets=np.array([attribution.target for attribution in attributions], dtype=np.int64),
            probabilities=np.array([attribution.probability for attribution in attributions]),
            completeness=np.array([attribution.completeness for attribution in attributions]),
            experts=experts,
        )

    def _has_samples_to_check(self, number: int) -> bool:
        return not self._to_check.isdisjoint(self._batches[number])

    def _check_batch(self, results: BatchResults) -> None:
        for place, index in enumerate(results.indices):
            if int(index) in self._to_check:
                self.check(self._job.samples[index], int(results.targets[place]), results.scores[place])


def _expert_scores(attributions: Sequence[Attribution]) -> ExpertScores:
    samples = [
        {layer: scores.numpy() for layer, scores in attribution.experts.items()}
        for attribution in attributions
        if attribution.experts is not None
    ]
    return ExpertScores.of(samples) if samples else ExpertScores.none(attributions[0].scores.shape[1])


def _attribute(attributor: Attributor, samples: Sequence[Sample]) -> list[Attribution]:
    """Attribute a batch, in halves where it does not fit into memory."""
    try:
        return attributor.attribute([sample.input_ids for sample in samples], [sample.target for sample in samples])
    except PromptError as error:
        raise LokiError(f"sample {samples[error.index].id}: {error.problem}") from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(samples) == 1:
            raise LokiError(
                f"sample {samples[0].id}: out of memory on a prompt of {len(samples[0].input_ids)} tokens: lower "
                "--memory-budget, use --dtype bfloat16, or spread the model with --device-map auto; what is finished "
                "is kept"
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(samples) // 2
    return _attribute(attributor, samples[:half]) + _attribute(attributor, samples[half:])
