"""The report: one self-contained HTML page of what a run directory holds."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from loki.artefacts.provenance import library_versions
from loki.artefacts.run_layout import CONFIG, PAGE
from loki.files import atomic_file
from loki.implanting.training.output import loss_figure
from loki.report.result_figures import ablation_figure, read_ablation
from loki.report.run_directory import RunContents

_MOST_CELLS = 20_000  # selected rows that can be pointed at; more would make the page heavy
_LIBRARIES = ("peft", "trl", "safetensors")


@dataclass(frozen=True)
class Cell:
    """One selected row in the map.

    Attributes:
        layer: its layer.
        row: its number.
        title: what is said when it is pointed at.
    """

    layer: int
    row: int
    title: str


def write_report(run: RunContents, output: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write the report of a run.

    Args:
        run: what `loki run` or `loki demo` left, finished or not (`loki.report.run_directory.read_run`).
        output: file to write (default: `report.html` in the run directory).
        overwrite: replace it if it exists.

    Returns:
        The file.

    Raises:
        LokiError: if the output exists.
    """
    target = output or run.path / PAGE
    page = render(run)
    with atomic_file(target, overwrite=overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def render(run: RunContents) -> str:
    """The page. Everything that comes from outside is escaped by the template engine."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    layers = len(run.positions) if run.positions is not None else 0
    hidden = int(run.scores.shape[1]) if run.scores is not None else _width(run)
    return environment.get_template("page.html.j2").render(
        run=run,
        version=version("loki-llm"),
        versions={**library_versions(), **{name: version(name) for name in _LIBRARIES}},
        settings=_flat({name: value for name, value in run.settings.items() if name not in ("before", "after")}),
        provenance=_flat(run.provenance),
        command=_command(run),
        layers=layers,
        hidden=hidden,
        selected=sum(map(len, run.positions or [])),
        heat=_heat(run.scores) if run.scores is not None else "",
        cells=_cells(run),
        most_cells=_MOST_CELLS,
        most_change=max((change.relative for change in run.changes), default=0.0),
        loss=_image(loss_figure(run.log)) if any("loss" in entry for entry in run.log) else "",
        ablation=_image(ablation_figure(read_ablation(run.ablation))) if run.ablation else "",
        tables=run.comparison.get("tables", []),
        reasons=run.comparison.get("reasons", []),
        outcomes=[
            (one["new"], one["verdict"]["outcome"])
            for one in run.comparison.get("comparisons", [])
            if one.get("forgetting") or any(text.get("kl") for text in one.get("texts", []))
        ],
        demo=_demo_rows(run.settings),
    )


def _cells(run: RunContents) -> list[Cell]:
    """The selected rows, as many as can be shown."""
    cells = []
    for layer, rows in enumerate(run.positions or []):
        ranks = run.scores[layer].argsort().argsort() if run.scores is not None else None
        for row in rows:
            title = f"layer {layer}, row {row}"
            if run.scores is not None and ranks is not None:
                title += f", rank {ranks[row] + 1} of {len(ranks)}, mean score {run.scores[layer, row]:.3g}"
            cells.append(Cell(layer, row, title))
    return cells[:_MOST_CELLS]


def _heat(scores: NDArray[np.float64]) -> str:
    """The ranks of the rows within their layer as a picture of one pixel per row, light to dark."""
    ranks = scores.argsort(axis=1).argsort(axis=1) / max(1, scores.shape[1] - 1)
    picture = Image.fromarray((235 - 150 * ranks).astype(np.uint8))
    return _data_uri(picture)


def _image(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _data_uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _width(run: RunContents) -> int:
    return max((row for rows in run.positions or [] for row in rows), default=0) + 1


def _command(run: RunContents) -> str:
    """The command that makes such a run again."""
    settings = run.settings
    if "calibration" not in settings:
        return f"loki demo --output {run.path}"
    digest = str(settings.get("data", ""))[:12]
    return f"loki run --config {run.path / CONFIG} --output {run.path}-again   # data with SHA-256 {digest}..."


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            rows += _flat(value, f"{label}: ")
        elif value not in ("", None, []):
            rows.append((label, f"{value:.6g}" if isinstance(value, float) else str(value)))
    return rows


def _demo_rows(settings: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Accuracy by family before and after, of a demo."""
    before, after = settings.get("before"), settings.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    return [(name, float(before[name]), float(after[name])) for name in before if name in after]
