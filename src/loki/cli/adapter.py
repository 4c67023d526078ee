"""`loki adapter`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say


@app.command()
def adapter(
    model: Annotated[str, typer.Argument(help="Base model: a local directory or hub id.", show_default=False)],
    positions: Annotated[Path, typer.Option("--positions", help="Positions file made by `loki select`.")],
    output: Annotated[Path, typer.Option("--output", help="Directory of the LoKI adapter to write.")],
    rank: Annotated[
        int | None, typer.Option("--rank", help="Train a product of this rank (LoKI + LoRA). Default: the full rows.")
    ] = None,
    moments: Annotated[
        Path | None, typer.Option("--moments", help="Second moments made by `loki moments`, for --protect.")
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            "--protect", help="Share of the input directions, the most used ones, that training leaves alone."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random factor that a rank needs.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings along.")
    ] = False,
) -> None:
    """Make a LoKI adapter that changes nothing yet, for trainers that start from a saved PEFT adapter.

    Example:
        loki adapter Qwen/Qwen2.5-0.5B-Instruct --positions positions.json --output adapter
    """
    import torch

    from loki.cli.quiet import quiet_libraries
    from loki.implanting.peft.zero import save_zero_adapter

    quiet_libraries()
    torch.manual_seed(seed)
    save_zero_adapter(
        model,
        positions,
        output,
        rank=rank,
        moments=moments,
        protect=protect,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    say(f"LoKI adapter: {output}", output=output)
