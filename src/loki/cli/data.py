"""`loki data`."""

from dataclasses import asdict
from typing import Annotated

import typer

from loki.artefacts.training_settings import TrainingSettings
from loki.cli.app import app, console, say
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Data, TrustRemoteCode
from loki.data.settings import DataSettings
from loki.errors import LAST_SEED


@app.command()
@with_options(leave_out=("eval_split",), settings=DataSettings)
def data(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.", show_default=False)],
    data: Data,
    *,
    settings: DataSettings,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens per training example.")] = (
        TrainingSettings.max_length
    ),
    examples: Annotated[int, typer.Option("--examples", help="How many examples to show.")] = 3,
    whole: Annotated[bool, typer.Option("--whole", help="Show all of a long prompt.")] = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LAST_SEED, help="Seed of the draw where sources have shares.")
    ] = TrainingSettings.seed,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show what a model would be trained on: examples with the trained tokens in colour, and figures over all.

    Example:
        loki data MODEL --data train.jsonl
    """
    from loki.cli.progress import progress_bar
    from loki.cli.quiet import quiet_libraries
    from loki.data.examples import load_training_data
    from loki.data.preparing import fit_records, training_tokenizer
    from loki.data.preview import MARKS, TRAINED_STYLE, figures, rendered
    from loki.data.sources import as_sources
    from loki.errors import LokiError
    from loki.models.model_directory import ModelDirectory

    if examples < 0 or max_length < 1:
        raise LokiError(f"--examples {examples} and --max-length {max_length}: numbers from 0 and from 1 are expected")
    quiet_libraries()
    directory = ModelDirectory(model, trust_remote_code=trust_remote_code)
    tokenizer = training_tokenizer(directory, settings.chat_template)
    sources = as_sources(data, split=settings.data_split, subset=settings.data_subset)
    records = load_training_data(sources, chat_template=bool(tokenizer.chat_template))
    with progress_bar():
        fitted = fit_records(records, directory, tokenizer, max_length, seed=seed)
    count, coloured = len(fitted.dataset), console.color_system is not None
    for index in [number * count // min(examples, count) for number in range(min(examples, count))]:
        # No rule: it would cut a long path to the width of the terminal.
        console.print(f"--- {fitted.origins[index]}", style="dim", markup=False, soft_wrap=True)
        console.print(rendered(fitted, index, tokenizer, whole=whole, marks=not coloured), soft_wrap=True)
    if examples:
        how = f"[{TRAINED_STYLE}]in this colour[/]" if coloured else f"between {MARKS[0]} and {MARKS[1]}"
        console.rule(f"trained is what stands {how}", style="dim", characters="-")
    found = figures(fitted)
    lines = [
        f"examples              {found.examples}",
        f"tokens                {found.tokens}, of which {found.trained_tokens} are trained",
        f"tokens of an example  median {found.median}, 95% {found.quantile_95}, longest {found.longest}",
        f"cut                   {found.cut} lose the end of their answer at {max_length} tokens",
        f"end of the turn       trained in {found.ended} of {found.examples}",
        *(f"left out              {number} {reason}" for reason, number in fitted.dropped.items()),
        *(f"note                  {number} {what}" for what, number in fitted.notes.items()),
    ]
    say("\n".join(lines), **asdict(found), dropped=fitted.dropped, notes=fitted.notes)
