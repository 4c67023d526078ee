"""`loki create`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say


@app.command()
def create(
    model: Annotated[str, typer.Argument(help="Base model: a local directory or hub id.", show_default=False)],
    positions: Annotated[Path, typer.Option("--positions", help="Positions file made by `loki select`.")],
    output: Annotated[Path, typer.Option("--output", help="LoKI model directory to write.")],
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of the weights: auto (as in the base), float32, bfloat16 or float16.")
    ] = "auto",
    moments: Annotated[
        Path | None, typer.Option("--moments", help="Second moments made by `loki moments`, for --protect.")
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            "--protect", help="Share of the input directions, the most used ones, that training leaves alone."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings along.")
    ] = False,
) -> None:
    """Make a LoKI model directory, in which exactly the selected rows are trainable.

    Example:
        loki create Qwen/Qwen2.5-0.5B-Instruct --positions positions.json --output loki_model
    """
    from loki.implanting.create import create_loki_model
    from loki.models.loading import pick_dtype

    create_loki_model(
        model_name=model,
        target_pos_path=positions,
        save_dir=output,
        torch_dtype=pick_dtype(dtype),
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        moments=moments,
        protect=protect,
    )
    say(f"LoKI model: {output}", output=output)
