"""`loki ablate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, console, say
from loki.cli.measure_options import (
    BatchSize,
    ChatTemplate,
    Device,
    DType,
    FewShot,
    IncludePath,
    Limit,
    Metric,
    Suite,
    Tasks,
    Texts,
    Window,
    measure_options,
)
from loki.cli.options import parse_quotas


@app.command()
def ablate(
    model: Annotated[str, typer.Argument(help="Local directory or hub id.", show_default=False)],
    scores: Annotated[Path, typer.Option("--scores", help="Scores file of the model, made by `loki analyse`.")],
    quotas: Annotated[
        str, typer.Option("--quotas", help="Percentages of every layer's rows to set to zero.")
    ] = "1,5,10,30",
    text: Texts = None,
    tasks: Tasks = None,
    suite: Suite = None,
    metric: Metric = None,
    include_path: IncludePath = None,
    limit: Limit = None,
    num_fewshot: FewShot = None,
    apply_chat_template: ChatTemplate = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the curves to this JSON file, for `loki plot ablation`.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    batch_size: BatchSize = 8,
    window: Window = 256,
    dtype: DType = "auto",
    device: Device = "auto",
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
    from loki.files import refuse_existing_file, write_json
    from loki.report.ablation import ablation_tables

    if output is not None:
        refuse_existing_file(output, overwrite=overwrite)
    options = measure_options(
        texts=text,
        data=None,
        tasks=tasks,
        suite=suite,
        metrics=metric,
        include_path=include_path,
        limit=limit,
        fewshot=num_fewshot,
        chat_template=apply_chat_template,
        batch_size=batch_size,
        window=window,
        dtype=dtype,
        device=device,
    )
    quiet_libraries()
    found = ablate_rows(find_subject(model), scores, AblationOptions(tuple(parse_quotas(quotas))), options)
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
