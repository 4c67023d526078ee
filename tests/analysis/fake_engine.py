"""An engine that needs no model: scores are a fixed function of the prompts and, as with real ones, of the batch."""

import hashlib
import time
from collections.abc import Sequence
from typing import Self

import numpy as np
import pytest
import torch

from loki.analysis import batch_computer
from loki.kva.attributor import Attribution
from loki.kva.settings import AttributionSettings
from loki.models.model_directory import ModelDirectory

LAYERS, HIDDEN = 3, 32


class FakeAttributor:
    """Also counts what it has computed, and fails when told to."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, ...]] = []
        self.checked: list[tuple[int, ...]] = []
        self.engines: list[str] = []
        self.budgets: set[int | None] = set()
        self.error: BaseException | None = None
        self.error_after = 0
        self.largest_batch = 10**9
        self.seconds = 0.0
        self.captum_factor = 1.0

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        time.sleep(self.seconds)
        if len(batch) > self.largest_batch:
            raise torch.OutOfMemoryError("out of memory")
        if self.error and len(self.prompts) >= self.error_after:
            raise self.error
        pairs = zip(batch, targets, strict=True)
        self.prompts += [tuple(prompt) for prompt in batch]
        return [fake_attribution(prompt, len(batch), target) for prompt, target in pairs]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def made(self, _model: None, settings: AttributionSettings, *, memory_budget: int | None) -> "Self | FakeCaptum":
        """Stands in for `make_attributor`."""
        self.engines.append(settings.engine)
        self.budgets.add(memory_budget)
        return FakeCaptum(self) if settings.engine == "captum" else self


class FakeCaptum:
    """The reference that belongs to a fake engine."""

    def __init__(self, fake: FakeAttributor) -> None:
        self._fake = fake

    def attribute(self, batch: Sequence[Sequence[int]], targets: Sequence[int | None]) -> list[Attribution]:
        self._fake.checked += [tuple(prompt) for prompt in batch]
        pairs = zip(batch, targets, strict=True)
        return [fake_attribution(prompt, 1, target, self._fake.captum_factor) for prompt, target in pairs]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def fake_attribution(
    prompt: Sequence[int], batch_size: int, target: int | None = None, factor: float = 1.0
) -> Attribution:
    seed = int.from_bytes(hashlib.sha256(repr(list(prompt)).encode()).digest()[:8], "little")
    scores = np.random.default_rng(seed).normal(size=(LAYERS, HIDDEN)) * factor * (1 + 1e-7 * batch_size)
    return Attribution(
        scores=torch.from_numpy(scores.astype(np.float32)),
        target=seed % 320 if target is None else target,
        probability=0.25,
        completeness=0.01,
    )


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeAttributor:
    """Replaces the engine; the model is not loaded either."""
    fake = FakeAttributor()
    monkeypatch.setattr(batch_computer, "make_attributor", fake.made)
    monkeypatch.setattr(ModelDirectory, "load", lambda *_, **__: None)
    monkeypatch.setattr(batch_computer, "free_memory", lambda _: 2**30)
    return fake
