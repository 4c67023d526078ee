"""`loki verify`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.shared_options import Experts, TrustRemoteCode


@app.command()
def verify(
    base: Annotated[str, typer.Argument(help="The model before: a local directory or hub id.", show_default=False)],
    tuned: Annotated[str, typer.Argument(help="The model after.", show_default=False)],
    positions: Annotated[Path, typer.Option("--positions", help="Positions file: the rows that may differ.")],
    device: Annotated[str, typer.Option("--device", help="Where to run both models: auto, cpu, mps or cuda.")] = "cpu",
    experts: Experts = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check that nothing but the selected rows differs between two models; exit code 1 if something else does.

    Tensors and configurations are compared, then the logits of both models with the change switched off.

    Example:
        loki verify Qwen/Qwen2.5-0.5B-Instruct restored --positions positions.json
    """
    from loki.artefacts.positions import read_positions
    from loki.ranks import pick_device
    from loki.restoring.verify import verify as compare

    report = compare(
        base,
        tuned,
        read_positions(positions),
        device=str(pick_device(device)),
        trust_remote_code=trust_remote_code,
        experts=experts,
    )
    report.raise_for_differences()
    say(
        f"Verified: of {report.tensors} tensors, nothing but selected rows differs "
        f"({report.changed_rows} of {report.selected_rows} changed), and with the base's rows put back the logits of "
        f"{report.prompts} prompts are equal to the last bit.",
        tensors=report.tensors,
        changed_rows=report.changed_rows,
        selected_rows=report.selected_rows,
        prompts=report.prompts,
    )
