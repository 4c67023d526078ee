"""`loki compare`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, console, say
from loki.cli.measure_options import Measured
from loki.cli.option_groups import with_options
from loki.cli.parsing import parse_percent
from loki.cli.shared_options import Overwrite
from loki.errors import LAST_SEED, LokiError


@app.command()
@with_options(measured=Measured)
def compare(
    base: Annotated[
        str,
        typer.Argument(
            help="The model before: a directory, hub id, LoKI model, adapter, or a result of evaluate or lm_eval.",
            show_default=False,
        ),
    ],
    new: Annotated[list[str], typer.Argument(help="The models after: one or more of the same.", show_default=False)],
    *,
    measured: Measured,
    positions: Annotated[
        Path | None,
        typer.Option("--positions", help="The rows that may differ, where a model does not know them itself."),
    ] = None,
    max_drop: Annotated[str, typer.Option("--max-drop", help="Forgetting that is accepted, in percent.")] = "1%",
    max_kl: Annotated[
        float, typer.Option("--max-kl", help="KL(base || new) that is accepted, in nats per token.")
    ] = 0.1,
    show_flips: Annotated[
        int, typer.Option("--show-flips", min=0, help="Print so many items that were lost, and gained, of every task.")
    ] = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the tables as LaTeX.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Also write all of it to this file, as JSON.")] = None,
    overwrite: Overwrite = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LAST_SEED, help="Of the resampling that makes intervals.")
    ] = 0,
) -> None:
    """See what was learned and what was lost; exit code 0 PASS, 1 FAIL, 3 INCONCLUSIVE.

    Without --tasks it is a tripwire: loss, perplexity and KL on a small general text, and needs no hub.

    Example:
        loki compare MODEL restored --data train.jsonl --tasks hellaswag --limit 500
    """
    from loki.artefacts.positions import read_positions
    from loki.cli.quiet import quiet_libraries
    from loki.evaluation.compare import compare as compare_models
    from loki.evaluation.verdict import Limits
    from loki.files import protect_inputs, refuse_existing_file, write_json
    from loki.models.model_directory import models_read
    from loki.report.comparison import comparison_file, comparison_tables, flips_table

    options = measured.options()
    if markdown and latex:
        raise LokiError("--markdown and --latex are two forms of the same tables: choose one")
    if output is not None:
        refuse_existing_file(output, overwrite=overwrite)
        protect_inputs(output, *models_read(base, *new), positions, *options.inputs)
    limits = Limits(parse_percent(max_drop, "--max-drop"), max_kl)
    quiet_libraries()
    found = compare_models(
        base, new, options, limits, positions=read_positions(positions) if positions else None, seed=seed
    )
    tables = comparison_tables(found)
    tables += [flips_table(one, show_flips) for one in found if show_flips > 0]
    for table in tables:
        if markdown or latex:
            console.print(table.markdown() if markdown else table.latex(), markup=False, soft_wrap=True)
        else:
            console.print(table.rich())
    for one in found:
        for reason in one.verdict.reasons:
            say(f"{one.new}: {reason}")
    values = comparison_file(found, flips_shown=max(show_flips, 10))
    if output is not None:
        write_json(output, values, overwrite=overwrite)
    say("Verdict: " + ", ".join(f"{one.new} {one.verdict.outcome}" for one in found), comparisons=values["comparisons"])
    if code := _worst([one.verdict.exit_code for one in found]):
        raise typer.Exit(code)


def _worst(codes: list[int]) -> int:
    """A FAIL, else an INCONCLUSIVE, else a PASS."""
    return 1 if 1 in codes else max(codes)
