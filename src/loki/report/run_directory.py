"""What a run directory holds, as far as it does: the material of the report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loki.artefacts.positions import Positions, read_positions
from loki.artefacts.run_layout import ABLATION, COMPARISON, DEMO, POSITIONS, RESTORED, RUN, SCORES, TRAINED
from loki.artefacts.scores import ScoresReader
from loki.artefacts.trainer_state import STATE, read_trainer_state
from loki.errors import LokiError
from loki.evaluation.result_schema import MEASURE_AGAIN, AblationFile, ComparisonFile
from loki.inputs import checked, read_json
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.report.score_figures import mean_scores


@dataclass(frozen=True)
class LayerChange:
    """What training changed in one layer.

    Attributes:
        layer: its number.
        rows: how many rows are selected.
        changed: how many of them changed.
        norm: 2-norm of the change.
        relative: of the change, beside the norm of the selected rows.
    """

    layer: int
    rows: int
    changed: int
    norm: float
    relative: float


@dataclass
class RunContents:
    """Everything that was found.

    Attributes:
        path: the run directory.
        missing: by name, what is not there, with what would make it.
        settings: of `loki run`, or the results of `loki demo`.
        base: name of the model before; empty where it is not known.
        base_model: that model, where it can be had.
        provenance: of the scores.
        scores: `[L, D]`; mean scores.
        positions: the selected rows.
        changes: one entry per layer.
        log: of the training.
        comparison: what `loki compare --output` wrote, see `loki.report.comparison.comparison_file`.
        ablation: what `loki ablate --output` wrote.
    """

    path: Path
    missing: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    base_model: ModelDirectory | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: NDArray[np.float64] | None = None
    positions: Positions | None = None
    changes: list[LayerChange] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    ablation: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Path]:
        """All that the run directory holds but for pages."""
        return [path for path in self.path.iterdir() if path.suffix != ".html"]


def read_run(path: Path, base: ModelDirectory | None = None, *, trust_remote_code: bool = False) -> RunContents:
    """Read what `loki run` or `loki demo` left, finished or not. What cannot be read counts as missing.

    Args:
        path: the run directory.
        base: its base model, where that has been looked up already.
        trust_remote_code: run Python code that the base model brings along.

    Raises:
        LokiError: if `path` is not a directory, or no run began there.
    """
    if not path.is_dir():
        raise LokiError(f"run directory {path} does not exist: check the path")
    if not any((path / name).is_file() for name in (RUN, DEMO, SCORES, POSITIONS)):
        raise LokiError(f"{path} is not a run directory: name the --output of `loki run` or `loki demo`")
    run = RunContents(path)

    for name in (RUN, DEMO):
        if (path / name).is_file():
            _take(run, name, "", lambda place: run.settings.update(_object(place)))
    run.base = str(base or (path / "base" if (path / "base").is_dir() else run.settings.get("model", "")))
    if run.base:
        try:
            chosen = run.settings.get("experts")
            run.base_model = ModelDirectory.of(base or run.base, trust_remote_code=trust_remote_code, experts=chosen)
        except LokiError as error:
            run.missing["base"] = f"base model: {error}"
    _take(run, SCORES, "not analysed yet (loki analyse)", lambda place: _take_scores(run, place))
    _take(run, POSITIONS, "no rows selected yet (loki select)", lambda place: _take_positions(run, place))
    _take(run, f"{TRAINED}/{STATE}", "not trained yet (loki train)", lambda place: _take_log(run, place))
    _take(run, RESTORED, "not restored yet (loki restore)", lambda place: _take_changes(run, place))
    read_comparison(run)
    if (path / ABLATION).is_file():
        _take(run, ABLATION, "", lambda place: run.ablation.update(_ablation(place)))
    return run


def read_comparison(run: RunContents) -> None:
    """Read the comparison in a run directory, in place of one that was read before."""

    def take(place: Path) -> None:
        found = _object(place)
        checked(ComparisonFile, found, f"comparison {place}", advice=MEASURE_AGAIN)
        run.comparison = found

    _take(run, COMPARISON, "not compared with the base (loki compare --output)", take)


def layer_changes(base: AnyModel, restored: Path, positions: Positions) -> list[LayerChange]:
    """The change of the selected rows of every layer's `down_proj.weight`."""
    base = ModelDirectory.of(base)
    found = ModelDirectory(restored, experts=base.experts)
    changes = []
    for layer, (tensors, rows) in enumerate(zip(found.rows_for(positions), positions, strict=True)):
        weights = [tensor for tensor in tensors if rows and len(tensor.shape) > 1]
        if not weights:
            changes.append(LayerChange(layer, 0, 0, 0.0, 0.0))
            continue
        first, second = (
            torch.cat([checkpoint.tensor(one.name).movedim(one.axis, 0)[rows].flatten(1) for one in weights], dim=1)
            for checkpoint in (base.checkpoint, found.checkpoint)
        )
        first = first.double()
        change = second.double() - first
        size = float(first.norm())
        changed = int(change.any(dim=1).sum()) if rows else 0
        norm = float(change.norm())
        changes.append(LayerChange(layer, len(rows), changed, norm, norm / size if size else 0.0))
    return changes


def _take(run: RunContents, name: str, advice: str, work: Callable[[Path], None]) -> None:
    """Read one artefact, or note that it is missing."""
    run.missing.pop(name, None)
    place = run.path / name
    if not place.exists():
        run.missing[name] = f"{name}: {advice}"
        return
    try:
        work(place)
    except (LokiError, OSError) as error:
        run.missing[name] = f"{name} cannot be read: {error}"


def _take_scores(run: RunContents, path: Path) -> None:
    with ScoresReader(path) as reader:
        if reader.provenance is not None:
            run.provenance = dict(vars(reader.provenance))
        run.provenance["samples"] = reader.samples
    run.scores = mean_scores(path)


def _take_positions(run: RunContents, path: Path) -> None:
    run.positions = read_positions(path)


def _take_log(run: RunContents, path: Path) -> None:
    run.log = read_trainer_state(path)["log_history"]


def _take_changes(run: RunContents, path: Path) -> None:
    if run.positions is not None and run.base_model:
        run.changes = layer_changes(run.base_model, path, run.positions)


def _ablation(path: Path) -> dict[str, Any]:
    found = _object(path)
    checked(AblationFile, found, f"ablation {path}", advice=MEASURE_AGAIN)
    return found


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path, what="record")
    if not isinstance(found, dict):
        raise LokiError(f"{path} holds no JSON object")
    return found
