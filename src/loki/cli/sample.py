"""`loki sample`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.calibration.settings import OwnTextSettings
from loki.cli.app import app, say
from loki.cli.option_groups import with_options


@app.command()
@with_options(settings=OwnTextSettings)
def sample(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", help="JSONL file to write.", show_default=False)],
    *,
    settings: OwnTextSettings,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output, or an interrupted run with other settings.")
    ] = False,
) -> None:
    """Let a model write texts of its own, as calibration data: for `loki moments`, `loki analyse` or --keep.

    An interrupted run goes on when the same command is run again.

    Example:
        loki sample models/llama --output own.jsonl
    """
    from loki.calibration.own_texts import write_own_texts
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries

    quiet_libraries()
    with progress_bar() as progress:
        count = write_own_texts(model, output, settings, overwrite=overwrite, progress=progress)
    say(f"{count} texts of the model's own: {output}", output=output, texts=count)
