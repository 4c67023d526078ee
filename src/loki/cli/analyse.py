"""`loki analyse`."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from loki.analysis.options import AnalysisOptions
from loki.cli.app import app, error_console, say, warnings_as_lines
from loki.cli.option_groups import with_options
from loki.cli.published_choices import ATTRIBUTION, SELECTION, Published, check_published
from loki.cli.shared_options import TrustRemoteCode
from loki.kva.settings import AttributionSettings
from loki.selection.strategies import SelectionSettings, strategy_names
from loki.selection.strategy import By


@app.command()
@with_options(leave_out=("attribution.seed",), attribution=AttributionSettings)
def analyse(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model directory or hub id.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Calibration data: mmlu, a local copy of it, a JSONL file, or a text (.txt).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Scores file to write; with --no-log the folder for positions files. "
            "Default: kva_result/hdf5/<model>/kva_mmlu.h5, kva_result/pos_json/<model>.",
            metavar="PATH",
        ),
    ] = None,
    *,
    attribution: AttributionSettings,
    subjects: Annotated[
        str | None, typer.Option("--subjects", help="Only these subjects, separated by commas.", metavar="NAMES")
    ] = None,
    samples_per_subject: Annotated[
        int | None, typer.Option("--samples-per-subject", help="Draw so many samples of every subject.", metavar="N")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything drawn by chance.")] = AnalysisOptions.seed,
    batch_size: Annotated[str, typer.Option("--batch-size", help="Samples per batch, or auto.")] = str(
        AnalysisOptions.batch_size
    ),
    memory_budget: Annotated[
        str | None,
        typer.Option(
            "--memory-budget", help="What the engine may use beside the model. Default: what is free.", metavar="SIZE"
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (as saved), float32, bfloat16 or float16.")
    ] = AnalysisOptions.dtype,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, mps or cuda.")] = AnalysisOptions.device,
    device_map: Annotated[
        str | None, typer.Option("--device-map", help="auto spreads the model over all devices.", metavar="MAP")
    ] = None,
    check: Annotated[
        int, typer.Option("--check", help="Recompute so many random samples with Captum.")
    ] = AnalysisOptions.check,
    no_log: Annotated[
        bool, typer.Option("--no-log", help="Write positions files for --quota directly, and no scores file.")
    ] = False,
    quota: Annotated[
        str, typer.Option("--quota", help="Percentages of the rows to select, for --no-log and --until-stable.")
    ] = "10",
    strategy: Annotated[
        str, typer.Option("--strategy", help=f"With --no-log: {', '.join(strategy_names(counting=True))}.")
    ] = SelectionSettings.strategy,
    by: Annotated[
        By, typer.Option("--by", help="With --no-log: go by the scores with their sign, or without.")
    ] = SelectionSettings.by,
    until_stable: Annotated[
        float | None,
        typer.Option(
            "--until-stable",
            help="Stop when more samples leave this part of the selection as it is.",
            metavar="OVERLAP",
        ),
    ] = None,
    published: Published = False,
    write_mode: Annotated[
        str, typer.Option("--write-mode", help="w: a new file; a: add the samples that an existing file lacks.")
    ] = "w",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output, or an interrupted run with other settings.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score how much every row of the model's down_proj weights matters for general knowledge.

    An interrupted analysis continues when the same command is run again.

    Example:
        loki analyse models/llama --data mmlu --output scores.h5
        loki analyse models/llama --data general.txt --definition sensitivity --output sensitivity.h5
    """
    from loki.analysis.analyse import analyse as analyse_model
    from loki.analysis.analyse import default_scores_path
    from loki.analysis.count import count_selections
    from loki.artefacts.positions import default_positions_folder
    from loki.cli.parsing import parse_batch_size, parse_bytes, parse_quotas
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries
    from loki.errors import LokiError
    from loki.kva.attributor import NotExactWarning
    from loki.kva.integration import completeness_advice
    from loki.ranks import is_main_process, started_alone

    if write_mode not in ("w", "a"):
        raise LokiError(f"--write-mode {write_mode} is not known: use w or a")
    if no_log and write_mode == "a":
        raise LokiError("--write-mode a adds to a scores file, and --no-log writes none: leave out one of them")
    settings = replace(attribution, seed=seed)
    if published:
        check_published(context, {**ATTRIBUTION, **SELECTION})
        settings = replace(settings, **ATTRIBUTION)
        strategy, by = SELECTION.values()
    options = AnalysisOptions(
        batch_size=parse_batch_size(batch_size),
        dtype=dtype,
        device=device,
        device_map=device_map,
        subjects=[name.strip() for name in subjects.split(",")] if subjects else None,
        samples_per_subject=samples_per_subject,
        seed=seed,
        check=check,
        memory_budget=parse_bytes(memory_budget) if memory_budget else None,
        trust_remote_code=trust_remote_code,
    )
    quotas = parse_quotas(quota)
    if started_alone():
        error_console.print("one process was started: on CPUs, accelerate launch starts several with --multi_gpu")
    quiet_libraries()
    with progress_bar() as progress, warnings_as_lines(NotExactWarning):
        if no_log:
            counted = count_selections(
                model,
                data,
                output or default_positions_folder(model),
                quotas,
                settings,
                options,
                selection=SelectionSettings(strategy, by),
                overwrite=overwrite,
                until_stable=until_stable,
                progress=progress,
            )
            samples, paths, completeness = counted.samples, list(counted.paths.values()), counted.completeness
        else:
            analysis = analyse_model(
                model,
                data,
                output or default_scores_path(model),
                settings,
                options,
                append=write_mode == "a",
                overwrite=overwrite,
                until_stable=until_stable,
                quotas=quotas,
                progress=progress,
            )
            samples, paths, completeness = analysis.samples, [analysis.path], analysis.completeness
    if not is_main_process():
        return
    if advice := completeness_advice(completeness, settings.ig_method, settings.steps):
        error_console.print(advice)
    say(
        f"{samples} samples analysed: {', '.join(map(str, paths))}",
        samples=samples,
        output=paths,
        completeness=None if math.isnan(completeness) else completeness,
    )
