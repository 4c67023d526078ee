"""`loki merge-adapters`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.hub_options import HubOptions
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Overwrite


@app.command()
@with_options(hub=HubOptions)
def merge_adapters(
    adapters: Annotated[list[Path], typer.Argument(help="Directories of LoKI adapters.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", help="Directory of the merged adapter to write.")],
    overwrite: Overwrite = False,
    *,
    hub: HubOptions,
) -> None:
    """Merge adapters over disjoint rows into one that does what all of them do, in any order.

    Example:
        loki merge-adapters runs/tools runs/dates --output runs/both
    """
    from loki.implanting.peft.merge import merge_adapters as merge

    hub.check()
    config = merge(adapters, output, overwrite=overwrite)
    rows = sum(len(layer) for layer in config.row_lists)
    say(f"{len(adapters)} adapters, {rows} rows, merged into {output}", rows=rows, output=output)
    hub.push(output)
