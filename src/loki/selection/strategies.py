"""From scores to positions: the strategies by which rows are selected."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from loki.errors import LokiError
from loki.selection.accumulators import GlobalCounter, LayerBalancedCounter, RowCounter, check_rows_left
from loki.selection.positions import Positions, check_positions_fit
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
    with _open_scores(scores) as dataset:
        samples, layers, hidden = dataset.shape
        if strategy == "random":
            return _random(rows_for_quota(quota, hidden), layers, hidden, seed, exclude)
        counter = make_counter(strategy, quota, layers, hidden, exclude=exclude)
        task = progress.add_task("Selecting", total=samples) if progress else None
        for chunk in _chunks(dataset):
            counter.update(chunk)
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

    The model's name is that of the folder the scores file lies in, as in `kva_result/hdf5/<model>/kva_mmlu.h5`.
    """
    return Path("kva_result", "pos_json", scores.resolve().parent.name, f"{quota:.12g}.json")


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


_CHUNK_BYTES = 2**24


@contextmanager
def _open_scores(path: Path) -> Iterator[h5py.Dataset]:
    if not path.is_file():
        raise LokiError(f"scores file {path} does not exist: check the path, or make it with `loki analyse`")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise LokiError(f"scores file {path} cannot be read ({error}): analyse again") from error
    with file:
        dataset = file.get("dataset")
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 3:
            raise LokiError(f"scores file {path} has no dataset named 'dataset' of rank 3 [samples, layers, rows]")
        yield dataset


def _chunks(dataset: h5py.Dataset) -> Iterator[NDArray[np.float32]]:
    size = max(1, _CHUNK_BYTES // (4 * dataset.shape[1] * dataset.shape[2]))
    for start in range(0, len(dataset), size):
        yield dataset[start : start + size].astype(np.float32)
