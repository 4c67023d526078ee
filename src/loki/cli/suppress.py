"""`loki suppress`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.shared_options import Experts, Overwrite, TrustRemoteCode


@app.command()
def suppress(
    model: Annotated[str, typer.Argument(help="Local directory or hub id.", show_default=False)],
    positions: Annotated[Path, typer.Option("--positions", help="Positions file: the rows to set to zero.")],
    output: Annotated[Path, typer.Option("--output", help="Model directory to write.")],
    experts: Experts = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Set the selected rows to zero: the paper's ablation, to see what the model knew through them.

    Example:
        loki suppress Qwen/Qwen2.5-0.5B-Instruct --positions positions.json --output suppressed
    """
    from loki.restoring.suppress import set_zero_weights

    set_zero_weights(
        model, positions, output, overwrite=overwrite, trust_remote_code=trust_remote_code, experts=experts
    )
    say(f"Suppressed model: {output}", output=output)
