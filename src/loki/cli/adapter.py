"""`loki adapter`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.hub_options import HubOptions
from loki.cli.option_groups import with_options
from loki.cli.shared_options import BaseModel, Experts, Moments, Overwrite, Positions, Protect, TrustRemoteCode
from loki.errors import LAST_SEED


@app.command()
@with_options(hub=HubOptions)
def adapter(
    model: BaseModel,
    positions: Positions,
    output: Annotated[Path, typer.Option("--output", help="Directory of the LoKI adapter to write.")],
    rank: Annotated[
        int | None, typer.Option("--rank", help="Train a product of this rank (LoKI + LoRA). Default: the full rows.")
    ] = None,
    moments: Moments = None,
    protect: Protect = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LAST_SEED, help="Seed of the random factor that a rank needs.")
    ] = 0,
    experts: Experts = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    *,
    hub: HubOptions,
) -> None:
    """Make a LoKI adapter that changes nothing yet, for trainers that start from a saved PEFT adapter.

    Example:
        loki adapter Qwen/Qwen2.5-0.5B-Instruct --positions positions.json --output adapter
    """
    import torch

    from loki.cli.quiet import quiet_libraries
    from loki.implanting.peft.zero import save_zero_adapter

    hub.check()
    quiet_libraries()
    torch.manual_seed(seed)
    save_zero_adapter(
        model,
        positions,
        output,
        rank=rank,
        moments=moments,
        protect=protect,
        experts=experts,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    say(f"LoKI adapter: {output}", output=output)
    hub.push(output)
