"""How much of what training changed to keep: accuracy on the new task against damage, for several scales."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress

from loki.calibration.texts import load_token_ids
from loki.data.fitting import length_within
from loki.data.preparing import prepare_training_data
from loki.errors import LokiError
from loki.metrics.completions import completion_scores
from loki.metrics.divergence import kl_of_logits
from loki.models.model_directory import ModelDirectory
from loki.restoring.restore import restore_loki_model
from loki.restoring.scale import check_scale, scaled

DEFAULT_SCALES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class ScalePoint:
    """What a model with one scale does.

    Attributes:
        scale: factor of what training changed.
        accuracy: part of the new task's examples whose answer is reproduced exactly.
        loss: mean loss on their answers, in nats per token.
        kl: KL(base || model) on general text, in nats per token.
    """

    scale: float
    accuracy: float
    loss: float
    kl: float


@dataclass(frozen=True)
class ScaleSweep:
    """The points of a sweep, and which is chosen.

    Attributes:
        points: one per scale, from the smallest.
        tolerance: how much accuracy may be given up, as a part of 1.
    """

    points: list[ScalePoint]
    tolerance: float

    @property
    def chosen(self) -> ScalePoint:
        """The least damage within the tolerance of the best accuracy."""
        best = max(point.accuracy for point in self.points)
        return min((point for point in self.points if point.accuracy >= best - self.tolerance), key=lambda one: one.kl)


@torch.no_grad()
def sweep_scales(
    trained: Path,
    data: Path,
    keep: str,
    *,
    base_model: str | Path | None = None,
    scales: Sequence[float] = DEFAULT_SCALES,
    tolerance: float = 0.01,
    max_length: int = 1024,
    window: int = 128,
    windows: int = 32,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ScaleSweep:
    """Measure a trained model with several scales; it and its base are in memory together.

    Args:
        trained: a trained LoKI model or adapter.
        data: examples of the new task, in any form of training data.
        keep: general text, see `loki.calibration.texts.load_token_ids`.
        base_model: the base model; None takes the one that `trained` names.
        scales: factors above 0 and at most 1.
        tolerance: how much accuracy the choice may give up.
        max_length: tokens per example.
        window: tokens per window of general text.
        windows: windows of it, from all over.
        device: where to compute.
        trust_remote_code: run Python code that the base model brings along.
        progress: where to show how far it has come.

    Raises:
        LokiError: for bad input of any kind.
    """
    if not scales or len(set(scales)) < len(scales):
        raise LokiError("--scales needs at least one scale, each once: write them as 0.5,0.7,1")
    for scale in scales:
        check_scale(scale)
    if not 0 <= tolerance <= 1:
        raise LokiError(f"--tolerance {tolerance} is out of range: it must be from 0 to 1")
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        # Scale 0 is the base as it was trained: converted where the LoKI model was made in another type.
        none = Path(temporary, "none")
        restore_loki_model(trained, whole, base_model=base_model, trust_remote_code=trust_remote_code)
        restore_loki_model(
            trained,
            none,
            base_model=base_model,
            scale=0.0,
            allow_unchanged=True,
            trust_remote_code=trust_remote_code,
        )
        directory = ModelDirectory(
            none, trust_remote_code=trust_remote_code
        )  # which has the base's tokenizer where the trained model has none
        examples = prepare_training_data(data, directory, max_length).dataset
        texts = load_token_ids(
            keep,
            directory.tokenizer,
            max_length=length_within(directory.config, window),
            vocab_size=directory.text_config.vocab_size,
        )
        texts = texts[:: max(1, len(texts) // windows)][:windows]
        model, base = (
            ModelDirectory(whole, trust_remote_code=trust_remote_code).load(device=device),
            directory.load(device=device),
        )
    before = dict(base.named_parameters())
    changes = {
        name: parameter.float() - before[name].float()
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    points = []
    task = progress.add_task("Scaling", total=len(scales)) if progress else None
    for scale in sorted(scales):
        for name, change in changes.items():
            model.get_parameter(name).copy_(scaled(change, scale, before[name]))
        new = completion_scores(model, examples["input_ids"], examples["completion_mask"])
        total = 0.0
        for ids in texts:
            tokens = torch.tensor([ids], device=model.device)
            old, now = (one(input_ids=tokens, use_cache=False).logits for one in (base, model))
            total += len(ids) * float(kl_of_logits(old, now, torch.ones_like(tokens, dtype=torch.bool)))
        points.append(ScalePoint(scale, new.accuracy, new.loss, total / sum(map(len, texts))))
        if progress and task is not None:
            progress.advance(task)
    return ScaleSweep(points, tolerance)
