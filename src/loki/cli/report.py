"""`loki report`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.shared_options import TrustRemoteCode


@app.command()
def report(
    run_directory: Annotated[
        Path, typer.Argument(help="The --output of `loki run` or `loki demo`, finished or not.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="Page to write. Default: report.html in the run directory.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Training data, to show what was learned of it.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Compare with the base where that was not done before.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write one self-contained page of a run: what was selected, changed, learned and lost, and how to repeat it.

    Where the run directory holds no compare.json (of `loki compare --output`), base and restored model are compared on
    the package's general text.

    Example:
        loki report runs/mine --output report.html
    """
    from loki.artefacts.run_layout import PAGE
    from loki.cli.quiet import quiet_libraries
    from loki.files import protect_inputs, refuse_existing_file
    from loki.report.page import write_report
    from loki.report.run_comparison import compare_run
    from loki.report.run_directory import read_run

    target = output or run_directory / PAGE
    refuse_existing_file(target, overwrite=overwrite)
    quiet_libraries()
    run = read_run(run_directory, trust_remote_code=trust_remote_code)
    protect_inputs(target, data, run.base_model, *run.inputs)
    if compare:
        compare_run(run, data=data)
    say(f"Report: {write_report(run, target, overwrite=overwrite)}", report=target)
