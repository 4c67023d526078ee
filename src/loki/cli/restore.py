"""`loki restore`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.hub_options import HubOptions
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Overwrite, TrustRemoteCode


@app.command()
@with_options(hub=HubOptions)
def restore(
    checkpoint: Annotated[
        Path, typer.Argument(help="Trained LoKI model or adapter, or one of its checkpoints.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", help="Ordinary model directory to write.")],
    base: Annotated[
        str | None, typer.Option("--base", help="Base model; the checkpoint must have been made from it.")
    ] = None,
    positions: Annotated[
        Path | None, typer.Option("--positions", help="Positions file; it must be the checkpoint's.")
    ] = None,
    scale: Annotated[
        float,
        typer.Option("--scale", help="Factor of what training changed; below 1 nearer to the base."),
    ] = 1.0,
    allow_unchanged: Annotated[
        bool, typer.Option("--allow-unchanged", help="Accept a checkpoint in which no selected row changed.")
    ] = False,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    *,
    hub: HubOptions,
) -> None:
    """Turn a trained LoKI model into an ordinary one that needs no LoKI.

    Example:
        loki restore trained --output restored
    """
    from loki.restoring.restore import restore_loki_model

    hub.check()
    restore_loki_model(
        checkpoint,
        output,
        base_model=base,
        target_pos_path=positions,
        scale=scale,
        allow_unchanged=allow_unchanged,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    say(f"Restored model: {output}", output=output)
    hub.push(output)
