"""Computing batches with a model of this process, and checking some of the samples with Captum."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from loki.errors import CheckFailed, LokiError
from loki.kva.attribution import Attribution, Attributor, make_attributor
from loki.kva.batches import Batch
from loki.kva.job import Job
from loki.kva.memory import free_memory
from loki.kva.scores import check_finite
from loki.kva.work_folder import BatchResults, WorkFolder
from loki.models.loading import load_model
from loki.ranks import Ranks

CHECK_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.1}
"""Largest accepted relative error of a sample's whole `[L, D]` scores against Captum, by the type computed in."""


class BatchComputer:
    """Computes batches of a job; the model is loaded when the first one is.

    Args:
        job: what is computed.
        batches: sample indices of every batch.
    """

    def __init__(self, job: Job, batches: Sequence[Batch]) -> None:
        self._job = job
        self._batches = batches
        self._model: PreTrainedModel | None = None
        self._memory_budget = job.memory_budget
        count = min(job.check, len(job.samples))
        chosen = np.random.default_rng(job.seed).choice(len(job.samples), size=count, replace=False)
        self._to_check = {int(index) for index in chosen}

    def results(self, numbers: Sequence[int]) -> Iterator[tuple[int, BatchResults]]:
        """The results of the batches `numbers`, those with samples to check first.

        Raises:
            LokiError: if a sample cannot be attributed, or its scores are not finite.
            CheckFailed: if the scores of a sample that was to be checked are not those of Captum.
        """
        if not numbers:
            return
        checked = [number for number in numbers if not self._to_check.isdisjoint(self._batches[number])]
        for number in checked:
            with self._attributor(self._job.settings.engine) as attributor:
                results = self._compute(attributor, number)
            self._check(results)
            yield number, results
        with self._attributor(self._job.settings.engine) as attributor:
            for number in numbers:
                if number not in checked:
                    yield number, self._compute(attributor, number)

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
            self._model = load_model(
                self._job.directory,
                dtype=self._job.provenance.dtype,
                device=self._job.device,
                device_map=self._job.device_map,
                trust_remote_code=self._job.trust_remote_code,
            )
        return self._model

    def _attributor(self, engine: str) -> Attributor:
        settings = replace(self._job.settings, engine=engine)
        return make_attributor(self._loaded(), settings, memory_budget=self._memory_budget)

    def _compute(self, attributor: Attributor, number: int) -> BatchResults:
        indices = self._batches[number]
        samples = [self._job.samples[index] for index in indices]
        attributions = _attribute(
            attributor, [sample.input_ids for sample in samples], [sample.target for sample in samples]
        )
        scores = torch.stack([attribution.scores for attribution in attributions]).numpy()
        check_finite(scores, [sample.id for sample in samples], origin="computed")
        return BatchResults(
            indices=np.array(indices, dtype=np.int64),
            scores=scores,
            targets=np.array([attribution.target for attribution in attributions], dtype=np.int64),
            probabilities=np.array([attribution.probability for attribution in attributions]),
            completeness=np.array([attribution.completeness for attribution in attributions]),
        )

    def _check(self, results: BatchResults) -> None:
        tolerance = CHECK_TOLERANCE[self._job.provenance.dtype]
        with self._attributor("captum") as reference:
            for place, index in enumerate(results.indices):
                if int(index) not in self._to_check:
                    continue
                sample = self._job.samples[index]
                (expected,) = reference.attribute([sample.input_ids], [int(results.targets[place])])
                expected_norm = float(expected.scores.norm())
                error = float((torch.from_numpy(results.scores[place]) - expected.scores).norm())
                if error > tolerance * expected_norm:
                    raise CheckFailed(
                        f"sample {sample.id}: the scores differ from Captum's by {error / expected_norm:.2g} "
                        f"(relative; at most {tolerance:g} is accepted): use --engine captum, and report this model"
                    )


def _attribute(attributor: Attributor, prompts: list[list[int]], targets: Sequence[int | None]) -> list[Attribution]:
    """Attribute a batch, in halves where it does not fit into memory."""
    try:
        return attributor.attribute(prompts, targets)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(prompts) == 1:
            raise LokiError(
                f"out of memory on a prompt of {len(prompts[0])} tokens: lower --memory-budget, use --dtype bfloat16, "
                "or spread the model with --device-map auto; what is finished is kept"
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(prompts) // 2
    first = _attribute(attributor, prompts[:half], targets[:half])
    return first + _attribute(attributor, prompts[half:], targets[half:])


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
