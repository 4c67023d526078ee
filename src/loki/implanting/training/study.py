"""A training as it was asked for, and a look at the model before and after it."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress
from transformers import PreTrainedModel

from loki.artefacts.training_settings import TrainingSettings
from loki.data.settings import DataSettings
from loki.data.sources import Data, local_paths
from loki.implanting.splitting import exact_rows
from loki.implanting.training.damage import damage_since
from loki.implanting.training.learned import Learned, Snapshot, shown, snapshot, text_of
from loki.implanting.training.material import Material
from loki.implanting.training.quantised import load_to_train
from loki.implanting.training.rate_search import RateSearch, search_rate
from loki.implanting.training.tryout import Trial
from loki.metrics.text import encode_for
from loki.metrics.texts import general_text
from loki.ranks import pick_device

_EVERY = 3  # of the general text, for a look at the damage that takes seconds on a CPU


@dataclass(frozen=True)
class Job:
    """One training, as it was asked for.

    Attributes:
        model: a LoKI model directory; or an ordinary model, with `positions`.
        data: training data.
        output: where checkpoints and the trained LoKI model go.
        settings: how to train.
        positions: positions file, for an ordinary model.
        eval_data: held-out data.
        data_settings: which part of the data, and how conversations are rendered.
        trust_remote_code: run Python code that the model brings along.
    """

    model: str | Path
    data: Data
    output: Path
    settings: TrainingSettings
    positions: Path | None = None
    eval_data: Data | None = None
    data_settings: DataSettings = field(default_factory=DataSettings)
    trust_remote_code: bool = False

    @property
    def inputs(self) -> tuple[str | Path | None, ...]:
        """What is read, and so must not lie in the output."""
        held_out = local_paths(self.eval_data) if self.eval_data else []
        return self.model, *local_paths(self.data), *held_out, self.positions, self.data_settings.chat_template


class Study:
    """Looks at the model before and after its training, on the device that is there; it is loaded when it is needed.

    Args:
        job: the training.
        material: what the job reads.
        progress: where to show how far the search for a rate has come.
    """

    def __init__(self, job: Job, material: Material, progress: Progress | None = None) -> None:
        self._job, self._material, self._progress = job, material, progress
        self._model: PreTrainedModel | None = None
        self._rows: dict[str, torch.Tensor] = {}

    def search(self, known: Sequence[Trial], note: Callable[[Trial], None]) -> RateSearch:
        """Find a learning rate, see `search_rate`."""
        model, material = self._untrained(), self._material
        return search_rate(
            model,
            material.encoded,
            material.encoded_held_out,
            self._job.settings,
            general=None if self._job.settings.rate_damage is None else self._general_text(model),
            known=known,
            note=note,
            progress=self._progress,
        )

    def before(self) -> Snapshot:
        """What the model does before its training."""
        untrained = self._untrained()
        self._rows = {name: tensor.cpu().clone() for name, tensor in exact_rows(untrained).items()}
        return self._snapshot(untrained)

    def learned(self, before: Snapshot) -> Learned:
        """What the model in the job's output has learned."""
        model = self._load(self._job.output)
        after = self._snapshot(model)
        examples, tokenizer = shown(self._material.encoded), self._material.tokenizer
        return Learned(
            before,
            after,
            [text_of(tokenizer, example.prompt) for example in examples],
            [text_of(tokenizer, example.answer) for example in examples],
            damage_since(model, self._rows, self._general_text(model)),
        )

    def close(self) -> None:
        """Let go of the model, so that its memory is there for the training."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _untrained(self) -> PreTrainedModel:
        self._model = self._model or self._load(self._material.directory.path)
        return self._model

    def _load(self, model: Path) -> PreTrainedModel:
        loaded = load_to_train(self._material.config, model, self._job.settings)
        return loaded if self._job.settings.bits else loaded.to(pick_device())

    def _general_text(self, model: PreTrainedModel) -> list[list[int]]:
        texts = general_text().texts[::_EVERY]
        return encode_for(model, self._material.tokenizer, texts).ids

    def _snapshot(self, model: PreTrainedModel) -> Snapshot:
        material = self._material
        return snapshot(
            model,
            material.tokenizer,
            material.encoded,
            material.encoded_held_out,
            batch_size=self._job.settings.batch_size,
        )
