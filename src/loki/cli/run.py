"""`loki run`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.artefacts.training_settings import TrainingSettings
from loki.cli.app import app, console, say
from loki.cli.option_groups import with_options
from loki.cli.training_options import Published, with_published_rate
from loki.selection.strategies import SelectionSettings, strategy_names
from loki.selection.strategy import By


@app.command()
@with_options(training=TrainingSettings)
def run(
    model: Annotated[str, typer.Argument(help="Base model: a local directory or hub id.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", help="Training data, as for `loki train`.")],
    calibration: Annotated[str, typer.Option("--calibration", help="Calibration data, as for `loki analyse`.")],
    quota: Annotated[float, typer.Option("--quota", help="Percentage of the rows to train.")],
    output: Annotated[Path, typer.Option("--output", help="Run directory; every phase leaves its artefact there.")],
    strategy: Annotated[
        str, typer.Option("--strategy", help=f"How rows are selected: {', '.join(strategy_names())}.")
    ] = SelectionSettings.strategy,
    by: Annotated[
        By, typer.Option("--by", help="Go by the scores with their sign, or without.")
    ] = SelectionSettings.by,
    definition: Annotated[
        str, typer.Option("--definition", help="captum (as published) or paper (eq. 4-5).")
    ] = "captum",
    steps: Annotated[int, typer.Option("--steps", help="Points of the integration rule.")] = 7,
    samples_per_subject: Annotated[
        int | None, typer.Option("--samples-per-subject", help="Draw so many calibration samples of every subject.")
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            "--protect",
            help="Share of the input directions, the ones that the calibration data uses most, that training leaves "
            "alone, as 0.5. Default: none.",
        ),
    ] = None,
    *,
    training: TrainingSettings,
    published: Published = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where the output holds a run.")] = False,
) -> None:
    """Run all phases; a finished phase is not run again, an interrupted one goes on.

    Example:
        loki run MODEL --data train.jsonl --calibration mmlu --quota 10 --output runs/mine
    """
    from loki.cli.progress import progress_bar
    from loki.kva.settings import AttributionSettings, Definition
    from loki.pipeline import RunSettings
    from loki.pipeline import run as run_phases
    from loki.report.run_comparison import report_on

    settings = RunSettings(
        model=model,
        data=data,
        calibration=calibration,
        quota=quota,
        selection=SelectionSettings(strategy, by),
        samples_per_subject=samples_per_subject,
        attribution=AttributionSettings(Definition(definition), steps),
        training=with_published_rate(training, published),
        protect=protect,
    )
    with progress_bar() as progress:
        result = run_phases(settings, output, overwrite=overwrite, console=console, progress=progress)
    page = report_on(output, data=data)
    say(
        f"verify   {result.seconds['verify']:.1f} s\n"
        f"{result.report.changed_rows} of {result.report.selected_rows} selected rows changed, and nothing else. "
        f"Restored model: {result.restored}",
        output=result.restored,
        seconds=result.seconds,
        changed_rows=result.report.changed_rows,
        selected_rows=result.report.selected_rows,
    )
    say(f"Report: {page}", report=page)
