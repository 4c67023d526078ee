"""`loki scale`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, console, say
from loki.cli.shared_options import Overwrite, TrustRemoteCode


@app.command()
def scale(
    trained: Annotated[Path, typer.Argument(help="Trained LoKI model or adapter.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", help="Examples of the new task, best ones that were not trained.")],
    keep: Annotated[str, typer.Option("--keep", help="General text: a .txt or JSONL file, or MMLU.", metavar="DATA")],
    base: Annotated[str | None, typer.Option("--base", help="Base model. Default: the one that was trained.")] = None,
    scales: Annotated[
        str, typer.Option("--scales", help="Factors of what training changed, separated by commas.")
    ] = "0.2,0.4,0.5,0.6,0.7,0.8,0.9,1",
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="How much accuracy the choice may give up, 0.01 for a hundredth.")
    ] = 0.01,
    plot: Annotated[Path | None, typer.Option("--plot", help="Picture of accuracy over damage to write, PNG.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, mps or cuda.")] = "auto",
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find how much of what was trained to keep: accuracy on the new task against damage to general text.

    Example:
        loki scale trained --data held_out.jsonl --keep general.txt --plot scale.png
    """
    from loki.cli.parsing import parse_numbers
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries
    from loki.evaluation.scale_sweep import sweep_scales
    from loki.files import protect_inputs, refuse_existing_file
    from loki.models.model_directory import models_read
    from loki.ranks import pick_device
    from loki.report.scale_curve import plot_scales, scale_table

    if plot is not None:
        refuse_existing_file(plot, overwrite=overwrite)
        protect_inputs(plot, *models_read(trained, base), data, keep)
    quiet_libraries()
    with progress_bar() as progress:
        sweep = sweep_scales(
            trained,
            data,
            keep,
            base_model=base,
            scales=parse_numbers(scales),
            tolerance=tolerance,
            device=pick_device(device),
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    if plot is not None:
        plot_scales(sweep, plot, overwrite=overwrite)
    console.print(scale_table(sweep).rich())
    chosen = sweep.chosen
    say(
        f"Least damage within {tolerance:g} of the best accuracy: loki restore {trained} --scale {chosen.scale:g} "
        f"--output DIRECTORY",
        chosen=asdict(chosen),
        points=[asdict(point) for point in sweep.points],
    )
