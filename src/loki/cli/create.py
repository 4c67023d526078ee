"""`loki create`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.shared_options import BaseModel, Experts, Moments, Overwrite, Positions, Protect, TrustRemoteCode


@app.command()
def create(
    model: BaseModel,
    positions: Positions,
    output: Annotated[Path, typer.Option("--output", help="LoKI model directory to write.")],
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of the weights: auto (as in the base), float32, bfloat16 or float16.")
    ] = "auto",
    moments: Moments = None,
    protect: Protect = None,
    experts: Experts = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
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
        experts=experts,
    )
    say(f"LoKI model: {output}", output=output)
