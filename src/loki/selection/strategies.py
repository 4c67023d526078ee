"""From scores to positions: the strategies by which rows are selected."""

from pathlib import Path

import numpy as np
from rich.progress import Progress

from loki.artefacts.positions import Positions, check_positions_fit, default_positions_folder, positions_file_name
from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from loki.selection.accumulators import GlobalCounter, LayerBalancedCounter, RowCounter, check_rows_left
from loki.selection.quota import rows_for_quota

COUNTING_STRATEGIES = ("layer_balanced", "global_lowest", "global_highest")
STRATEGIES = (*COUNTING_STRATEGIES, "random")


def select(
    scores: Path,
    quota: float,
    strategy: str = "layer_balanced",
    *,
    seed: int = 0,
    exclude: Positions | None = None,
    progress: Progress | None = None,
) -> Positions:
    """Select rows from a scores file `[N, L, D]`, which is read in chunks: memory does not grow with N.

    Args:
        scores: the scores file, of this or of the published project.
        quota: percentage of the rows, 0 < quota <= 100.
        strategy: `layer_balanced` (the paper's: `floor(quota/100 * D)` rows of every layer that are most often among a
            sample's lowest), `global_lowest` or `global_highest` (`floor(quota/100 * L * D)` rows of the model,
            whatever their layer), or `random` (as many rows of every layer as `layer_balanced`, drawn evenly).
        seed: of `random`; the others are deterministic.
        exclude: rows that are never selected, as if the model did not have them (default: none). The quota still
            refers to all rows.
        progress: where to show how far reading has come (default: nowhere).

    Returns:
        The selected rows of every layer, sorted.

    Raises:
        LokiError: if the file cannot be read, holds no samples, or a NaN or infinite score; if the quota is out of
            range or selects no row; if the strategy is unknown; if too few rows are left after excluding.
    """
    check_strategy(strategy)
    with ScoresReader(scores) as reader:
        layers, hidden = reader.layers, reader.hidden
        if strategy == "random":
            return _random(rows_for_quota(quota, hidden), layers, hidden, seed, exclude)
        counter = make_counter(strategy, quota, layers, hidden, exclude=exclude)
        task = progress.add_task("Selecting", total=reader.samples) if progress else None
        for start, chunk in reader.chunks():
            counter.update(chunk, ids=reader.records.sample_ids[start : start + len(chunk)])
            if progress and task is not None:
                progress.advance(task, len(chunk))
    return counter.positions()


def make_counter(
    strategy: str, quota: float, layers: int, hidden: int, *, exclude: Positions | None = None
) -> RowCounter:
    """The counter behind a counting strategy, for scores that come sample by sample.

    Args:
        strategy: one of `COUNTING_STRATEGIES`.
        quota: percentage of the rows, 0 < quota <= 100.
        layers: number of layers L.
        hidden: number of rows D per layer.
        exclude: rows that are never selected (default: none).

    Raises:
        LokiError: if the strategy does not count, the quota is out of range or selects no row, or too few rows are
            left after excluding.
    """
    check_strategy(strategy, among=COUNTING_STRATEGIES)
    if strategy == "layer_balanced":
        return LayerBalancedCounter(layers, hidden, rows_for_quota(quota, hidden), exclude)
    total = rows_for_quota(quota, layers * hidden)
    return GlobalCounter(layers, hidden, total, highest=strategy == "global_highest", exclude=exclude)


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


def check_strategy(strategy: str, *, among: tuple[str, ...] = STRATEGIES) -> None:
    """Check the name of a strategy.

    Raises:
        LokiError: if `strategy` is not one of `among`.
    """
    if strategy not in among:
        raise LokiError(f"strategy {strategy!r} is not known here: choose one of {', '.join(among)}")


def _random(k: int, layers: int, hidden: int, seed: int, exclude: Positions | None) -> Positions:
    if exclude is None:
        exclude = [[] for _ in range(layers)]
    check_positions_fit(exclude, layers=layers, hidden=hidden, origin="positions to exclude")
    generator = np.random.default_rng(seed)
    positions = []
    for excluded in exclude:
        left = np.setdiff1d(np.arange(hidden), excluded)
        check_rows_left(k, len(left))
        positions.append(np.sort(generator.choice(left, size=k, replace=False)).tolist())
    return positions
