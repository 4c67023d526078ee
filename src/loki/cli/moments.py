"""`loki moments`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.analysis.options import MomentsSettings
from loki.cli.app import app, error_console, say
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Experts


@app.command()
@with_options(settings=MomentsSettings)
def moments(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            help="Calibration text: a .txt file, mmlu, a local copy of it, or a JSONL file. May be repeated; each "
            "gives an equal part of --max-tokens.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="Moments file to write.", show_default=False)],
    experts: Experts = None,
    *,
    settings: MomentsSettings,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output, or an interrupted run with other settings.")
    ] = False,
) -> None:
    """Measure which input directions of every down_proj a model uses on ordinary text; --protect trains the others.

    An interrupted measurement continues when the same command is run again.

    Example:
        loki moments models/llama --data general.txt --max-tokens 100000 --output moments.safetensors
    """
    from loki.analysis.moments import few_tokens_advice, measure_moments
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries
    from loki.models.model_directory import ModelDirectory

    quiet_libraries()
    with progress_bar() as progress:
        origin = measure_moments(
            ModelDirectory(model, trust_remote_code=settings.trust_remote_code, experts=experts),
            data,
            output,
            settings,
            overwrite=overwrite,
            progress=progress,
        )
    if advice := few_tokens_advice(output):
        error_console.print(advice)
    say(
        f"Second moments over {origin.tokens:,} tokens of {origin.texts} texts: {output}",
        output=output,
        tokens=origin.tokens,
        texts=origin.texts,
    )
