"""Which samples are computed together: decided by samples and batch size alone, never by where a run stopped."""

from collections.abc import Iterator, Sequence

import numpy as np

_WINDOW = 16  # batches: prompts of similar length are gathered within a window, so that little is padded

Batch = list[int]


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[Batch]:
    """Split samples into batches of similar length.

    Batches `16 * w` to `16 * w + 15` together hold a contiguous range of samples, so that results can be put in order
    16 batches at a time.

    Args:
        lengths: number of tokens of every sample.
        batch_size: samples per batch.

    Returns:
        Sample indices of every batch, each index exactly once.
    """
    batches: list[Batch] = []
    window = _WINDOW * batch_size
    for start in range(0, len(lengths), window):
        indices = sorted(range(start, min(start + window, len(lengths))), key=lambda index: lengths[index])
        batches += [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    return batches


def windows(batches: Sequence[Batch]) -> Iterator[range]:
    """Ranges of batch numbers that together hold contiguous samples, in order."""
    for start in range(0, len(batches), _WINDOW):
        yield range(start, min(start + _WINDOW, len(batches)))


def processing_order(count: int, seed: int) -> list[int]:
    """The batch numbers in random order, so that the part done at any time stands for the whole."""
    return [int(index) for index in np.random.default_rng(seed).permutation(count)]


def auto_batch_size(lengths: Sequence[int], device_type: str) -> int:
    """A batch size that fills the device with prompts of these lengths: some hundred tokens on a CPU, more on a GPU.

    The engine stays within the memory budget at any batch size.
    """
    tokens = 512 if device_type == "cpu" else 4096
    return max(1, min(32, tokens // max(1, int(np.median(lengths)))))
