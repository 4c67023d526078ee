"""Analyses of the same data with the same model, by the fake engine."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from loki.analysis.analyse import analyse
from loki.analysis.batches import plan_batches
from loki.analysis.options import AnalysisOptions
from loki.kva.settings import AttributionSettings
from tests.analysis.calibration_files import write_prompts
from tests.analysis.fake_engine import HIDDEN, LAYERS, FakeAttributor, fake_attribution

COUNT = 37
BATCH = 4


def split_options(arguments: dict[str, Any]) -> tuple[AnalysisOptions, dict[str, Any]]:
    """The options among keyword arguments, and the others."""
    names = {field.name for field in fields(AnalysisOptions)}
    own = {name: value for name, value in arguments.items() if name in names}
    return AnalysisOptions(**own), {name: value for name, value in arguments.items() if name not in names}


class Analyst:
    """Analyses the same data with the same model again and again."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.data = folder / "prompts.jsonl"
        self.output = folder / "out" / "scores.h5"
        self.partial = folder / "out" / "scores.h5.partial"
        self.prompts = write_prompts(self.data, COUNT)

    def __call__(self, settings: AttributionSettings | None = None, **changes: Any) -> Any:
        options, arguments = split_options({"batch_size": BATCH, **changes})
        model, data = arguments.pop("model", self.model), arguments.pop("data", self.data)
        return analyse(model, str(data), arguments.pop("output", self.output), settings, options, **arguments)

    def dataset(self) -> np.ndarray:
        with h5py.File(self.output) as file:
            return file["dataset"][:]

    def expected(self, prompts: list[list[int]] | None = None) -> np.ndarray:
        """What the fake engine gives for the batches these prompts are planned in."""
        prompts = self.prompts if prompts is None else prompts
        scores = np.zeros((len(prompts), LAYERS, HIDDEN), dtype=np.float32)
        for batch in plan_batches([len(prompt) for prompt in prompts], BATCH):
            for index in batch:
                scores[index] = fake_attribution(prompts[index], len(batch)).scores.numpy()
        return scores


@pytest.fixture
def analyst(llama_dir: Path, tmp_path: Path, engine: FakeAttributor) -> Analyst:
    return Analyst(llama_dir, tmp_path)


@pytest.fixture
def interrupted(analyst: Analyst, engine: FakeAttributor) -> Iterator[Analyst]:
    engine.error, engine.error_after = KeyboardInterrupt(), 20
    with pytest.raises(KeyboardInterrupt):
        analyst()
    engine.error = None
    engine.prompts.clear()
    return analyst
