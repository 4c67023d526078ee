"""`loki merge`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.shared_options import Overwrite


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="Scores files made by `loki analyse`.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", help="Scores file to write.", show_default=False)],
    overwrite: Overwrite = False,
) -> None:
    """Join scores files of one model from separate machines.

    Example:
        loki merge part-1.h5 part-2.h5 --output scores.h5
    """
    from loki.analysis.merge_scores import merge_scores

    samples = merge_scores(parts, output, overwrite=overwrite)
    say(f"{samples} samples of {len(parts)} files: {output}", samples=samples, output=output)
