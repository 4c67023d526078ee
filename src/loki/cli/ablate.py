"""`loki ablate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, console, say
from loki.cli.measure_options import Measured
from loki.cli.option_groups import with_options
from loki.cli.parsing import parse_quotas
from loki.cli.shared_options import Experts, Overwrite


@app.command()
@with_options(leave_out=("measured.data",), measured=Measured)
def ablate(
    model: Annotated[str, typer.Argument(help="Local directory or hub id.", show_default=False)],
    scores: Annotated[Path, typer.Option("--scores", help="Scores file of the model, made by `loki analyse`.")],
    quotas: Annotated[
        str, typer.Option("--quotas", help="Percentages of every layer's rows to set to zero.")
    ] = "1,5,10,30",
    experts: Experts = None,
    *,
    measured: Measured,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the curves to this JSON file, for `loki plot ablation`.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Set the rows of the highest and lowest scores to zero, and see whether scores tell rows that matter.

    The paper's suppression ablation, in memory: nothing but the curves is written.

    Example:
        loki ablate MODEL --scores scores.h5 --quotas 1,5,10,30
    """
    from loki.cli.quiet import quiet_libraries
    from loki.evaluation.ablation import AblationOptions
    from loki.evaluation.ablation import ablate as ablate_rows
    from loki.evaluation.subjects import find_subject
    from loki.files import protect_inputs, refuse_existing_file, write_json
    from loki.models.model_directory import ModelDirectory, models_read
    from loki.report.ablation import ablation_tables

    options = measured.options()
    if output is not None:
        refuse_existing_file(output, overwrite=overwrite)
        protect_inputs(output, *models_read(model), scores, *options.inputs)
    quiet_libraries()
    directory = ModelDirectory(model, trust_remote_code=options.trust_remote_code, experts=experts)
    found = ablate_rows(find_subject(directory), scores, AblationOptions(tuple(parse_quotas(quotas))), options)
    for table in ablation_tables(found):
        console.print(table.rich())
    values = asdict(found)
    if output is not None:
        write_json(output, values, overwrite=overwrite)
    for sentence in found.sentences():
        say(sentence)
    say(
        f"Curves: {output}" if output else "Keep the curves with --output.",
        **values,
        separates={kind: found.separates(kind) for kind in ("signed", "absolute")},
    )
