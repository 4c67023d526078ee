"""`loki demo`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, console, error_console, say


@app.command()
def demo(
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also train the published rows, random ones, LoRA and all parameters, and show all side by side.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Run directory. Default: runs/demo, or runs/demo-2, ... where it is taken.",
            metavar="RUN_DIR",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier demo in --output, or in runs/demo.")
    ] = False,
) -> None:
    """Watch a tiny model learn new facts, from analysis to a restored and verified model. Needs no GPU and no network.

    Example:
        loki demo --compare
    """
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries
    from loki.demo.compare import compare as compare_methods
    from loki.demo.compare import methods_to_compare
    from loki.demo.demo import QUOTA, REQUIRED_ACCURACY, default_output, is_unfinished, run_demo
    from loki.demo.reporting import result_tables, save_comparison, save_results
    from loki.demo.world import tiny_world
    from loki.pipeline.phases import ARTEFACTS
    from loki.report.run_comparison import report_on

    quiet_libraries()
    output = output or default_output(overwrite=overwrite)
    overwrite = overwrite or is_unfinished(output)  # what an interrupted demo left is of no use
    with progress_bar() as progress:
        result = run_demo(
            output,
            overwrite=overwrite,
            announce=error_console.print,
            progress=progress,
        )
    save_results(output, result, overwrite=overwrite)
    for table in result_tables(result):
        console.print(table.rich(), "")
    if compare:
        methods = methods_to_compare(result.positions, QUOTA, result.hidden_size, output / ARTEFACTS["moments"])
        with progress_bar() as progress:
            outcomes = compare_methods(
                output / "base", tiny_world(), methods, required_accuracy=REQUIRED_ACCURACY, progress=progress
            )
        console.print(save_comparison(output, outcomes, REQUIRED_ACCURACY, overwrite=overwrite).rich(), "")
    say(f"Everything the phases left is in {output}", output=output)
    page = report_on(output)
    say(f"Report: {page}", report=page)
