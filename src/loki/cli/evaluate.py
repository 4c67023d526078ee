"""`loki evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from loki.cli.app import app, say
from loki.cli.measure_options import Measured
from loki.cli.option_groups import with_options
from loki.cli.shared_options import Overwrite


@app.command()
@with_options(measured=Measured)
def evaluate(
    model: Annotated[str, typer.Argument(help="A model directory, hub id, LoKI model or adapter.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", help="Result file to write, for `loki compare`.")],
    *,
    measured: Measured,
    overwrite: Overwrite = False,
) -> None:
    """Measure one model and keep the result, to compare others with it later.

    Example:
        loki evaluate MODEL --tasks hellaswag --limit 500 --output before.json
    """
    from loki.cli.quiet import quiet_libraries
    from loki.evaluation.measure import evaluate as measure
    from loki.evaluation.measure import save_result
    from loki.evaluation.subjects import find_subject
    from loki.files import protect_inputs, refuse_existing_file
    from loki.models.model_directory import models_read

    options = measured.options()
    refuse_existing_file(output, overwrite=overwrite)
    protect_inputs(output, *models_read(model), *options.inputs)
    quiet_libraries()
    result = measure(find_subject(model, trust_remote_code=options.trust_remote_code), options)
    save_result(output, result, overwrite=overwrite)
    for name, loss in result.texts.items():
        say(f"{name}: loss {loss.loss:.4f} nats per token, {loss.loss_per_byte:.4f} per byte")
    if result.data:
        say(f"{result.data.name}: loss {result.data.loss:.4f}, exact match {result.data.items.scores.mean():.3f}")
    for name, task in result.tasks.items():
        say(f"{name}: {task.metric.removesuffix(',none')} {task.scores.mean():.4f} on {len(task.items)} items")
    say(
        f"Result: {output}",
        output=output,
        losses={name: loss.loss for name, loss in result.texts.items()},
        scores={name: float(task.scores.mean()) for name, task in result.tasks.items()},
    )
