"""`loki moments`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say


@app.command()
def moments(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Calibration text: a .txt file, mmlu, a local copy of it, or a JSONL file.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="Moments file to write.", show_default=False)],
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Take texts until they have so many tokens. Default: all.")
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens per text; longer ones are split.")] = 512,
    samples_per_subject: Annotated[
        int | None, typer.Option("--samples-per-subject", help="Draw so many texts of every subject.", metavar="N")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of what is drawn.")] = 0,
    block_size: Annotated[
        int, typer.Option("--block-size", help="Inputs whose second moment is kept whole; wider layers are cut.")
    ] = 2048,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Texts per forward pass.")] = 8,
    save_every: Annotated[int, typer.Option("--save-every", help="Batches between saved intermediate sums.")] = 50,
    dtype: Annotated[str, typer.Option("--dtype", help="auto (as saved), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output, or an interrupted run with other settings.")
    ] = False,
) -> None:
    """Measure which input directions of every down_proj a model uses on ordinary text; --protect trains the others.

    An interrupted measurement continues when the same command is run again.

    Example:
        loki moments models/llama --data general.txt --max-tokens 100000 --output moments.safetensors
    """
    from loki.analysis.moments import MomentsSettings, measure_moments
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries

    settings = MomentsSettings(
        max_length=max_length,
        max_tokens=max_tokens,
        samples_per_subject=samples_per_subject,
        seed=seed,
        block_size=block_size,
        batch_size=batch_size,
        save_every=save_every,
        dtype=dtype,
        device=device,
    )
    quiet_libraries()
    with progress_bar() as progress:
        origin = measure_moments(model, data, output, settings, overwrite=overwrite, progress=progress)
    say(
        f"Second moments over {origin.tokens:,} tokens of {origin.texts} texts: {output}",
        output=output,
        tokens=origin.tokens,
        texts=origin.texts,
    )
