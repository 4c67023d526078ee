"""From a scores file to positions."""

from pathlib import Path

from rich.progress import Progress

from loki.artefacts.positions import Positions, default_positions_folder, positions_file_name
from loki.artefacts.scores import ScoresReader
from loki.selection.accumulators import RowCounter
from loki.selection.strategies import SelectionSettings, find_strategy
from loki.selection.strategy import Request


def select(
    scores: Path,
    quota: float,
    settings: SelectionSettings | None = None,
    *,
    exclude: Positions | None = None,
    progress: Progress | None = None,
) -> Positions:
    """Select rows from a scores file `[N, L, D]`, which is read in chunks: memory does not grow with N.

    Args:
        scores: the scores file, of this or of the published project.
        quota: percentage of the rows, 0 < quota <= 100.
        settings: the strategy and what belongs to it (default: the published one).
        exclude: rows that are never selected, as if the model did not have them (default: none). The quota still
            refers to all rows.
        progress: where to show how far reading has come (default: nowhere).

    Returns:
        The selected rows of every layer, sorted.

    Raises:
        LokiError: if the file cannot be read, holds no samples, or a NaN or infinite score; if the quota is out of
            range or selects no row; if too few rows are left after excluding.
    """
    settings = settings or SelectionSettings()
    strategy = find_strategy(settings.strategy)
    with ScoresReader(scores) as reader:
        layers, hidden = reader.layers, reader.hidden
        if strategy.choose is not None:
            rows = strategy.rows(quota, layers, hidden)
            return strategy.choose(Request(rows, strategy.scope, layers, hidden, exclude, settings.seed))
        counter = make_counter(settings, quota, layers, hidden, exclude=exclude)
        task = progress.add_task("Selecting", total=reader.samples) if progress else None
        for _, chunk in reader.chunks():
            counter.update(chunk)
            if progress and task is not None:
                progress.advance(task, len(chunk))
    return counter.positions()


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
    rows = strategy.rows(quota, layers, hidden)
    return RowCounter(layers, hidden, rows, strategy.scope, strategy.counting, settings.by, exclude=exclude)


def default_positions_path(scores: Path, quota: float) -> Path:
    """Where the published project puts positions: `kva_result/pos_json/<model>/<quota>.json`.

    The model's name is that in the scores file; for a published file, which has none, that of the folder it lies in, as
    in `kva_result/hdf5/<model>/kva_mmlu.h5`.

    Raises:
        LokiError: if the scores file cannot be read.
    """
    with ScoresReader(scores) as reader:
        model = Path(reader.provenance.model) if reader.provenance else scores.resolve().parent
    return default_positions_folder(model) / positions_file_name(quota)
