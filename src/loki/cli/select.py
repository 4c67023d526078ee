"""`loki select`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loki.cli.app import app, say
from loki.cli.published_choices import SELECTION, Published, check_published
from loki.cli.shared_options import Experts, Overwrite, TrustRemoteCode
from loki.selection.strategies import SelectionSettings, find_strategy, strategy_names
from loki.selection.strategy import By, Input, Inputs

if TYPE_CHECKING:
    from rich.progress import Progress

    from loki.models.model_directory import ModelDirectory


@app.command()
def select(
    context: typer.Context,
    quota: Annotated[float, typer.Option("--quota", help="Percentage of the rows to select, above 0 and at most 100.")],
    scores: Annotated[
        Path | None, typer.Argument(help="Scores file made by `loki analyse`.", show_default=False)
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy", help=f"{', '.join(strategy_names())}: docs/guides/strategies.md says what each takes."
        ),
    ] = SelectionSettings.strategy,
    by: Annotated[
        By, typer.Option("--by", help="Go by the scores with their sign, as published, or without.")
    ] = SelectionSettings.by,
    model: Annotated[
        str | None, typer.Option("--model", help="Model directory or hub id, for strategies that go by weights.")
    ] = None,
    moments: Annotated[
        Path | None, typer.Option("--moments", help="File made by `loki moments`, for the strategy wanda.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="For the strategy task_aware: training data, with --model; or the .h5 file made of it before.",
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option("--chat-template", help="Jinja file for the training data of --task, or hermes."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Positions file to write. Default: kva_result/pos_json/<model>/<quota>.json.",
            metavar="FILE",
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option("--exclude", help="Positions file whose rows are not selected again; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random strategy.")] = SelectionSettings.seed,
    experts: Experts = None,
    published: Published = False,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Select the rows to implant into: a quota of those that the analysis found least important.

    Example:
        loki select scores.h5 --quota 10 --output positions.json

        loki select --strategy magnitude --model MODEL --quota 10 --output positions.json

        loki select sensitivity.h5 --strategy task_aware --task train.jsonl --model MODEL --quota 10
    """
    from loki.artefacts.positions import merge_positions, read_positions, write_positions
    from loki.cli.progress import progress_bar
    from loki.errors import LokiError
    from loki.files import protect_inputs, refuse_existing_file
    from loki.models.model_directory import ModelDirectory
    from loki.selection.select import check_scores, default_positions_path
    from loki.selection.select import select as select_rows

    if published:
        check_published(context, SELECTION)
        strategy, by = SELECTION.values()
    settings = SelectionSettings(strategy, by, seed)
    gradients = Path(task) if task is not None else None
    chosen = find_strategy(strategy)
    if experts is not None and model is None:
        raise LokiError(f"--experts {experts} needs --model, to know which layers have rows")
    # To say which layers have rows, a model may be given to any strategy.
    given = model if experts is None or Input.MODEL in chosen.needs | chosen.takes else None
    chosen.check_inputs(Inputs(scores, given, moments, gradients).given(), strict=True)
    base = ModelDirectory(model, trust_remote_code=trust_remote_code, experts=experts) if model is not None else None
    output = output or default_positions_path(Inputs(scores, base), quota)
    refuse_existing_file(output, overwrite=overwrite)
    protect_inputs(output, scores, model, moments, task, *(exclude or []))
    excluded = merge_positions([read_positions(path) for path in exclude]) if exclude else None
    if scores is not None:
        check_scores(scores, settings, published=published)
    with progress_bar() as progress:
        if task is not None and Path(task).suffix != ".h5":
            gradients = task_gradients(task, base, output.with_suffix(".task.h5"), chat_template, overwrite, progress)
        inputs = Inputs(scores, base, moments, gradients)
        layers = base.layers_with_rows if base is not None and experts is not None else None
        positions = select_rows(inputs, quota, settings, exclude=excluded, layers=layers, progress=progress)
    write_positions(output, positions, overwrite=overwrite)
    rows = sum(map(len, positions))
    say(
        f"{rows} rows of {len(positions)} layers selected ({strategy}, quota {quota:g}%): {output}",
        rows=rows,
        output=output,
    )


def task_gradients(
    task: str,
    model: "ModelDirectory | None",
    output: Path,
    chat_template: str | None,
    overwrite: bool,
    progress: "Progress | None",
) -> Path:
    """The file with the task's gradients, computed now unless it is there already."""
    from loki.errors import LokiError
    from loki.files import protect_inputs
    from loki.selection.task_gradients import TaskGradientSettings, write_task_gradients

    if model is None:
        raise LokiError(f"--task {task} is training data, of which gradients are computed: give --model as well")
    protect_inputs(output, task, model)
    settings = TaskGradientSettings(chat_template=chat_template)
    return write_task_gradients(model, task, output, settings, overwrite=overwrite, progress=progress)
