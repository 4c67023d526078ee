"""`loki plot`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loki.cli.app import app, say
from loki.cli.shared_options import Overwrite
from loki.errors import LokiError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "layers": "where the highest and lowest rows of the model lie, from a scores file (the paper's Figure 2)",
    "scores": "distribution of the scores per layer, from a scores file",
    "overlap": "overlap of selections, from positions files, or of the subjects of a scores file",
    "stability": "agreement of the selection with that on all samples, from a scores file",
    "loss": "training and evaluation loss, from the directory of a training",
    "ablation": "loss against rows at zero, from the file of `loki ablate --output`",
    "forgetting": "forgetting with intervals, from the file of `loki compare --output`",
    "pareto": "the new task against damage, from files of `loki compare --data ... --output`",
}
_FORMATS = (".png", ".svg", ".pdf")


@app.command()
def plot(
    kind: Annotated[
        str, typer.Argument(help="; ".join(f"{name}: {what}" for name, what in KINDS.items()), show_default=False)
    ],
    inputs: Annotated[list[Path], typer.Argument(help="The files to draw from.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", help="Picture to write: .png, .svg or .pdf.")],
    quota: Annotated[
        float | None, typer.Option("--quota", help="Percentage of the rows. Default: 5 for layers, else 10.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a picture of scores or results.

    Example:
        loki plot layers scores.h5 --output layers.png
    """
    from loki.files import atomic_file, protect_inputs, refuse_existing_file

    if kind not in KINDS:
        raise LokiError(f"picture {kind!r} is not known: choose one of {', '.join(KINDS)}")
    if output.suffix not in _FORMATS:
        raise LokiError(f"--output {output} names no picture: end it in {', '.join(_FORMATS)}")
    refuse_existing_file(output, overwrite=overwrite)
    protect_inputs(output, *inputs)
    figure = _figure(kind, inputs, quota)
    with atomic_file(output, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=output.suffix[1:], dpi=150)
    say(f"Picture: {output}", output=output)


def _figure(kind: str, inputs: list[Path], quota: float | None) -> "Figure":
    from loki.report import result_figures, score_figures

    if kind == "overlap":
        return _overlap(inputs, 10.0 if quota is None else quota)
    if kind in ("forgetting", "pareto"):
        draw = result_figures.forgetting_figure if kind == "forgetting" else result_figures.pareto_figure
        return draw([one for path in inputs for one in _comparisons(path)])
    if len(inputs) != 1:
        raise LokiError(f"picture {kind} is drawn from one file, and {len(inputs)} are named")
    if kind == "loss":
        return _loss(inputs[0])
    if kind == "ablation":
        from loki.inputs import read_json

        found = read_json(inputs[0], what="ablation")
        return result_figures.ablation_figure(result_figures.read_ablation(found, f"ablation {inputs[0]}"))
    if kind == "scores":
        return score_figures.distribution_figure(inputs[0])
    draw_scores: Callable[[Path, float], Figure] = (
        score_figures.extremes_figure if kind == "layers" else score_figures.stability_figure
    )
    usual = 5.0 if kind == "layers" else 10.0
    return draw_scores(inputs[0], usual if quota is None else quota)


def _overlap(inputs: list[Path], quota: float) -> "Figure":
    from loki.artefacts.positions import read_positions
    from loki.report.score_figures import overlap_figure, subject_selections

    if len(inputs) == 1 and inputs[0].suffix != ".json":
        return overlap_figure(subject_selections(inputs[0], quota))
    return overlap_figure({str(path.with_suffix("")): read_positions(path) for path in inputs})


def _comparisons(path: Path) -> list[dict[str, object]]:
    from loki.evaluation.result_schema import MEASURE_AGAIN, ComparisonFile
    from loki.inputs import checked, read_json

    found = read_json(path, what="comparison")
    checked(ComparisonFile, found, f"comparison {path}", advice=MEASURE_AGAIN)
    comparisons: list[dict[str, object]] = found["comparisons"]
    return comparisons


def _loss(directory: Path) -> "Figure":
    from loki.artefacts.trainer_state import STATE, read_trainer_state
    from loki.implanting.training.output import loss_figure

    if not (directory / STATE).is_file():
        raise LokiError(f"{directory} holds no {STATE}: name the directory of a finished training")
    return loss_figure(read_trainer_state(directory / STATE)["log_history"])
