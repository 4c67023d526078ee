"""From scores, or what else a strategy goes by, to positions."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from loki.artefacts.positions import Positions, default_positions_folder, merge_positions, positions_file_name
from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from loki.kva.settings import Definition
from loki.models.model_directory import ModelDirectory
from loki.selection.accumulators import RowCounter
from loki.selection.strategies import SelectionSettings, find_strategy
from loki.selection.strategy import TASK_GRADIENT, Input, Inputs, Request, Scope, Strategy


def select(
    scores: Path | Inputs,
    quota: float,
    settings: SelectionSettings | None = None,
    *,
    exclude: Positions | None = None,
    layers: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Positions:
    """Select rows.

    Scores files `[N, L, D]` are read in chunks: memory does not grow with N.

    Args:
        scores: the scores file, of this or of the published project; or all that a strategy needs.
        quota: percentage of the rows, 0 < quota <= 100.
        settings: the strategy and what belongs to it (default: the published one).
        exclude: rows that are never selected, as if the model did not have them (default: none). The quota still
            refers to all rows.
        layers: the layers that have rows (default: all); those of the others are no rows for the quota either.
        progress: where to show how far reading has come (default: nowhere).

    Returns:
        The selected rows of every layer, sorted.

    Raises:
        LokiError: if something that the strategy needs is missing; if a file cannot be read, holds no samples, a NaN or
            infinite score, or scores of a definition that the strategy is not made for; if the quota is out of range or
            selects no row; if too few rows are left after excluding.
    """
    settings = settings or SelectionSettings()
    inputs = scores if isinstance(scores, Inputs) else Inputs(scores)
    strategy = find_strategy(settings.strategy)
    strategy.check_inputs(inputs.given())
    inputs, count, hidden = _looked_at(inputs, strategy)
    kept = range(count) if layers is None else layers
    rows = strategy.rows(quota, len(kept), hidden)
    if strategy.scope is Scope.MODEL and layers is not None:
        without = [[] if layer in kept else list(range(hidden)) for layer in range(count)]
        exclude = without if exclude is None else merge_positions([exclude, without])
    if strategy.choose is not None:
        found = strategy.choose(Request(rows, strategy.scope, count, hidden, inputs, exclude, settings.seed))
        return [chosen if layer in kept else [] for layer, chosen in enumerate(found)]
    assert inputs.scores is not None
    with ScoresReader(inputs.scores) as reader:
        counter = _counter(strategy, settings, rows, count, hidden, exclude)
        task = progress.add_task("Selecting", total=reader.samples) if progress else None
        for _, chunk in reader.chunks():
            counter.update(chunk)
            if progress and task is not None:
                progress.advance(task, len(chunk))
    return [chosen if layer in kept else [] for layer, chosen in enumerate(counter.positions())]


def check_scores(scores: Path, settings: SelectionSettings, *, published: bool = False) -> None:
    """Check that a strategy can go by a scores file, before anything is computed for it.

    Args:
        scores: the file.
        settings: the strategy.
        published: whether they must be scores as published: integrated gradients with their sign.

    Raises:
        LokiError: if the file cannot be read or its scores are of another kind.
    """
    with ScoresReader(scores) as reader:
        _check_definition(reader, find_strategy(settings.strategy))
        origin = reader.provenance
        if published and origin and (origin.definition == Definition.SENSITIVITY or origin.absolute):
            kind = "absolute values" if origin.absolute else f"of the definition {origin.definition}"
            raise LokiError(
                f"scores in {scores} are {kind}, and the published selection goes by signed integrated gradients: make "
                "them with `loki analyse --published`, or leave out --published"
            )


def _check_definition(reader: ScoresReader, strategy: Strategy) -> None:
    found = reader.provenance.definition if reader.provenance else "unknown, as published files do not say it"
    wanted = strategy.definition
    if wanted not in (None, found):
        raise LokiError(
            f"strategy {strategy.name} goes by scores of the definition {wanted}, but that of {reader.path} is "
            f"{found}: make them with `loki analyse --definition {wanted}`"
        )
    if found == TASK_GRADIENT:
        raise LokiError(f"{reader.path} holds gradients of a task, no scores: give it as --task")


def _looked_at(inputs: Inputs, strategy: Strategy) -> tuple[Inputs, int, int]:
    """The inputs with the model looked up; the number of layers L, and of rows D per layer."""
    if inputs.scores is not None and Input.MODEL not in strategy.needs:
        with ScoresReader(inputs.scores) as reader:
            _check_definition(reader, strategy)
            return inputs, reader.layers, reader.hidden
    assert inputs.model is not None
    model = ModelDirectory.of(inputs.model)
    return replace(inputs, model=model), model.layers, model.text_config.hidden_size


def make_counter(
    settings: SelectionSettings, quota: float, layers: int, hidden: int, *, exclude: Positions | None = None
) -> RowCounter:
    """The counter behind a strategy, for scores that come sample by sample.

    Args:
        settings: the strategy, one that counts.
        quota: percentage of the rows, 0 < quota <= 100.
        layers: number of layers L.
        hidden: number of rows D per layer.
        exclude: rows that are never selected (default: none).

    Raises:
        LokiError: if the strategy does not count, the quota is out of range or selects no row, or too few rows are
            left after excluding.
    """
    strategy = find_strategy(settings.strategy, counting=True)
    return _counter(strategy, settings, strategy.rows(quota, layers, hidden), layers, hidden, exclude)


def _counter(
    strategy: Strategy, settings: SelectionSettings, rows: int, layers: int, hidden: int, exclude: Positions | None
) -> RowCounter:
    assert strategy.counting is not None
    return RowCounter(layers, hidden, rows, strategy.scope, strategy.counting, settings.by, exclude=exclude)


def default_positions_path(inputs: Inputs, quota: float) -> Path:
    """Where the published project puts positions: `kva_result/pos_json/<model>/<quota>.json`.

    The model's name is that in the scores file; for a published file, which has none, that of the folder it lies in, as
    in `kva_result/hdf5/<model>/kva_mmlu.h5`. Without scores it is that of the model.

    Raises:
        LokiError: if the scores file cannot be read.
    """
    if inputs.scores is None:
        return default_positions_folder(str(inputs.model)) / positions_file_name(quota)
    with ScoresReader(inputs.scores) as reader:
        model = Path(reader.provenance.model) if reader.provenance else inputs.scores.resolve().parent
    return default_positions_folder(model) / positions_file_name(quota)
