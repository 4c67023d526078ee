"""`loki run`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from loki.analysis.options import AnalysisOptions
from loki.artefacts.training_settings import DEFAULT_PROTECT, DEFAULT_QUOTA, RATE_DAMAGE, BackendName, TrainingSettings
from loki.cli.app import app, console, say
from loki.cli.option_groups import with_options
from loki.cli.published_choices import ATTRIBUTION, SELECTION, TRAINING, check_published, typed
from loki.cli.shared_options import Experts, TrustRemoteCode
from loki.cli.training_options import Backend, LeverOptions, LlamaFactoryOptions, say_learned, with_published_rate
from loki.data.settings import DataSettings
from loki.kva.settings import AttributionSettings
from loki.selection.strategies import SelectionSettings, strategy_names


@app.command()
@with_options(
    leave_out=("attribution.engine", "attribution.absolute", "attribution.position", "attribution.seed"),
    attribution=AttributionSettings,
    data_settings=DataSettings,
    training=TrainingSettings,
    levers=LeverOptions,
    llamafactory=LlamaFactoryOptions,
)
def run(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Base model: a local directory or hub id.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Training data, as for `loki train`.", show_default=False)
    ] = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help="Calibration data, as for `loki analyse`.", show_default=False)
    ] = None,
    quota: Annotated[
        float | None, typer.Option("--quota", help=f"Percentage of the rows to train. Default: {DEFAULT_QUOTA:g}.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Run directory. Default: runs/<model>.", metavar="RUN_DIR", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="YAML file with options of all phases, such as run.yaml in a run directory. Options on the command "
            "line go before it.",
        ),
    ] = None,
    eval_data: Annotated[list[str] | None, typer.Option("--eval-data", help="Held-out data, as training data.")] = None,
    strategy: Annotated[
        str, typer.Option("--strategy", help=f"How rows are selected: {', '.join(strategy_names())}.")
    ] = SelectionSettings.strategy,
    by: Annotated[
        str, typer.Option("--by", help="Go by the scores with their sign (signed), or without (absolute).")
    ] = SelectionSettings.by.value,
    samples_per_subject: Annotated[
        int | None, typer.Option("--samples-per-subject", help="Draw so many calibration samples of every subject.")
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            "--protect",
            help="Share of the input directions, the ones that the calibration data uses most, that training leaves "
            f"alone; 0 for none. Default: {DEFAULT_PROTECT}.",
            show_default=False,
        ),
    ] = None,
    protect_data: Annotated[
        list[str] | None,
        typer.Option(
            "--protect-data",
            help="Texts that the use of input directions is measured on, as for `loki moments`. May be repeated. "
            "Default: the calibration data.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="To analyse in: auto (as saved), float32, bfloat16 or float16.")
    ] = AnalysisOptions.dtype,
    device: Annotated[
        str, typer.Option("--device", help="To analyse on: auto, cpu, mps or cuda.")
    ] = AnalysisOptions.device,
    backend: Backend = BackendName.TRL,
    experts: Experts = None,
    *,
    attribution: AttributionSettings,
    data_settings: DataSettings,
    training: TrainingSettings,
    levers: LeverOptions,
    llamafactory: LlamaFactoryOptions,
    published: Annotated[
        bool, typer.Option("--published", help="The paper's own choices: its scores, rows and rate, no levers.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help=f"Look at the damage of every rate: --rate-damage {RATE_DAMAGE:g}, a table.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what would be done, and for how long.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do finished phases again whose settings changed; else start anew.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run all phases; a finished phase is not run again, an interrupted one goes on.

    Example:
        loki run MODEL --data train.jsonl --calibration mmlu
    """
    from loki.artefacts.run_layout import CONFIG
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries
    from loki.data.sources import as_sources
    from loki.files import protect_inputs
    from loki.pipeline import RunSettings, read_config
    from loki.pipeline import run as run_phases
    from loki.report.run_comparison import report_on

    quiet_libraries()
    training = with_published_rate(training, published)
    if published:
        check_published(context, {**ATTRIBUTION, **SELECTION, **TRAINING})
        attribution, strategy, by, protect = replace(attribution, **ATTRIBUTION), *SELECTION.values(), 0.0
    if tune and training.rate_damage is None:
        training = replace(training, rate_damage=RATE_DAMAGE)
    given = {name for name in context.params if typed(context, name)} | ({"rate_damage"} if tune else set())
    given |= {"python"} if "llamafactory_python" in given else set()
    given |= {"learning_rate", *ATTRIBUTION, *SELECTION, *TRAINING} if published else set()
    values: dict[str, Any] = read_config(config) if config else {}
    own = {"model": model, "data": data, "calibration": calibration, "quota": quota}
    own |= {"eval_data": eval_data, "protect": protect, "backend": backend if "backend" in given else None}
    own |= {"experts": experts, "protect_data": protect_data}
    values |= {name: value for name, value in own.items() if value is not None and value != []}
    groups = {
        "selection": {"strategy": strategy, "by": by},
        "attribution": {name: value for name, value in vars(attribution).items() if name != "seed"},
        "analysis": {
            "samples_per_subject": samples_per_subject,
            "dtype": dtype,
            "device": device,
            "trust_remote_code": trust_remote_code,
        },
        "data_settings": vars(data_settings),
        "training": vars(training),
        "levers": vars(levers),
        "llamafactory": llamafactory.settings(),
    }
    for name, group in groups.items():
        chosen = {key: value for key, value in group.items() if key in given}
        values[name] = (
            {**(values.get(name) or {}), **chosen} if isinstance(values.get(name) or {}, dict) else values[name]
        )
    settings = RunSettings.from_dict(values)
    output = output or Path("runs") / Path(settings.model).resolve().name
    if config is not None and config.resolve() != (output / CONFIG).resolve():  # its own is written anew as it is
        protect_inputs(output, config)
    if dry_run:
        from loki.pipeline.dry_run import estimate

        found = estimate(settings, output)
        say("\n".join(found.lines()), **found.to_dict())
        return
    with progress_bar() as progress:
        result = run_phases(settings, output, overwrite=overwrite, console=console, progress=progress)
    if result.training:
        say_learned(result.training)
    sources = as_sources(settings.data)
    one = sources[0].path if len(sources) == 1 else None
    page = report_on(output, base=result.base, data=one if one and one.is_file() else None)
    say(
        f"{result.report.changed_rows} of {result.report.selected_rows} selected rows changed, and nothing else. "
        f"Restored model: {result.restored}",
        output=result.restored,
        seconds=result.seconds,
        changed_rows=result.report.changed_rows,
        selected_rows=result.report.selected_rows,
    )
    say(f"Report: {page}", report=page)
