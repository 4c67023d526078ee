"""What the datasets of a scores file must be, checked before anything of them is read.

HDF5 declares any size without storing anything, and its links lead anywhere: into a circle, or out of the file.
"""

from math import ceil, prod

import h5py

from loki.errors import LokiError

_MAX_CHUNK_BYTES = 2**28  # one chunk is unpacked at a time; ours have 1 MiB, the published ones less than one
_DAMAGED = "it is truncated or damaged: analyse again, or copy it again"


def scores_dataset(file: h5py.File, origin: str) -> h5py.Dataset:
    """The scores `[N, L, D]` of a file.

    Args:
        file: the open file.
        origin: what it is called in messages.

    Raises:
        LokiError: if there is no such dataset, or not all of it is stored in the file.
    """
    dataset = _stored_here(file, "dataset", origin)
    if dataset is None or dataset.ndim != 3 or dataset.dtype.kind != "f":
        raise LokiError(
            f"{origin} has no dataset named 'dataset' with floating-point scores "
            "[samples, layers, rows]: it is not a scores file"
        )
    if 0 in dataset.shape[1:]:
        raise LokiError(f"{origin} holds scores for {dataset.shape[1]} layers of {dataset.shape[2]} rows: {_DAMAGED}")
    _require_complete(dataset, "dataset", origin)
    return dataset


def sample_column(file: h5py.File, name: str, count: int, *, text: bool, origin: str) -> h5py.Dataset:
    """What a file holds beside the scores, one entry per sample.

    Args:
        file: the open file.
        name: of the dataset, which is there.
        count: number of samples.
        text: whether it holds texts, or numbers.
        origin: what the file is called in messages.

    Raises:
        LokiError: if it is something else, or of another length.
    """
    column = _stored_here(file, name, origin)
    is_text = column is not None and h5py.check_string_dtype(column.dtype) is not None
    if column is None or (not is_text if text else column.dtype.kind not in "iuf"):
        raise LokiError(f"{origin}: {name} does not hold {'texts' if text else 'numbers'}: {_DAMAGED}")
    if column.shape != (count,):
        raise LokiError(f"{origin}: {name} has the shape {column.shape} for {count} samples: {_DAMAGED}")
    _require_complete(column, name, origin)
    return column


def _stored_here(file: h5py.File, name: str, origin: str) -> h5py.Dataset | None:
    """The dataset of that name, if it is one and stored in the file itself."""
    link = file.get(name, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise LokiError(f"{origin}: {name} is a link to somewhere else: copy the file with what it links to")
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        return None
    if found.is_virtual or found.external:
        raise LokiError(f"{origin}: {name} is stored in other files: copy it into one")
    return found


def _require_complete(dataset: h5py.Dataset, name: str, origin: str) -> None:
    """Check that what a dataset declares is stored: what is not would be read as zeros, however much it is."""
    if dataset.shape is None:
        raise LokiError(f"{origin}: {name} is empty: {_DAMAGED}")
    if dataset.chunks is None:
        whole = dataset.nbytes <= dataset.id.get_storage_size()
    else:
        if prod(dataset.chunks) * dataset.dtype.itemsize > _MAX_CHUNK_BYTES:
            raise LokiError(f"{origin}: {name} is stored in chunks of {dataset.chunks}, too large to read: {_DAMAGED}")
        wanted = prod(ceil(size / chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        # Counting the chunks takes as long as there are chunks in the file, and no longer.
        whole = dataset.id.get_num_chunks() == wanted
    if not whole:
        raise LokiError(f"{origin}: {name} declares {dataset.shape}, but not all of it is stored: {_DAMAGED}")
