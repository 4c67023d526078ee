"""`loki export-lora`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.hub_options import HubOptions
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Overwrite


@app.command()
@with_options(hub=HubOptions)
def export_lora(
    adapter: Annotated[Path, typer.Argument(help="Directory of a LoKI adapter.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", help="Directory of the LoRA adapter to write.")],
    full_rows: Annotated[
        bool, typer.Option("--full-rows", help="Also export an adapter without a rank: its LoRA rank is the row count.")
    ] = False,
    overwrite: Overwrite = False,
    *,
    hub: HubOptions,
) -> None:
    """Turn a LoKI adapter into a plain LoRA adapter that loads without LoKI, with the same outputs.

    Example:
        loki export-lora runs/adapter --output runs/lora
    """
    from loki.implanting.peft.export import export_lora as export

    hub.check()
    rank = export(adapter, output, full_rows=full_rows, overwrite=overwrite)
    say(f"LoRA adapter of rank {rank} written to {output}", rank=rank, output=output)
    hub.push(output)
