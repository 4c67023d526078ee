"""Input directions that a model hardly uses: along them its rows can be trained with little damage.

The output of row `i` changes by `d . h` when the row changes by `d` and its input is `h`; over a text the mean square
of that is `d^T E[h h^T] d`. So a change along eigenvectors of the second moment `E[h h^T]` with small eigenvalues is
hardly felt on that text, and one that is orthogonal to all inputs not at all. The published method has no such
constraint; keeping updates away from used input directions is known from continual learning (OWM, arXiv 1810.01256;
GPM, arXiv 2103.09762).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

from loki.artefacts.moments import Moments
from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.files import atomic_file
from loki.ranks import pick_device

DIRECTIONS_FILE = "directions.safetensors"

Directions = dict[int, torch.Tensor]
"""By layer: `U` `[blocks, n, r]`; orthonormal directions of each block of `n` neighbouring inputs, `r` per block."""


def check_protect(protect: float) -> float:
    """Check a share of protected input directions, and return it.

    Raises:
        LokiError: if it is not between 0 and 1.
    """
    if not 0 < protect < 1:
        raise LokiError(f"--protect {protect} is out of range: it is the share of input directions to leave alone, 0.5")
    return protect


def free_directions(size: int, protect: float) -> int:
    """How many directions of a block of `size` inputs are trained along."""
    return size - round(protect * size)


def check_measured_on(moments: Path, model_fingerprint: str | None) -> None:
    """Check that second moments were measured on a model.

    Args:
        moments: file of second moments.
        model_fingerprint: hash of the model's weights; None is not checked.

    Raises:
        LokiError: if they were measured on another one.
    """
    origin = Moments(moments).origin
    if model_fingerprint not in (None, origin.model_fingerprint):
        raise LokiError(f"moments file {moments} was measured on another model ({origin.model}): measure this one")


def least_used_directions(moments: Path, protect: float, positions: Positions, *, widths: Sequence[int]) -> Directions:
    """The directions along which rows may change: in each block the eigenvectors of the smallest eigenvalues.

    Args:
        moments: file of second moments, see `loki.artefacts.moments`.
        protect: share of the directions that are left alone, those used most.
        positions: selected rows; a layer without any gets no directions.
        widths: inputs `d_ff` of every layer's `down_proj`.

    Raises:
        LokiError: if the share is not between 0 and 1 or leaves nothing to train, the moments are of another model, or
            a value in them is NaN.
    """
    check_protect(protect)
    device = pick_device()
    if device.type == "mps":  # has no float64
        device = torch.device("cpu")
    measured = Moments(moments)
    if measured.layers != len(positions):
        raise LokiError(f"moments file {moments} is for {measured.layers} layers, the positions for {len(positions)}")
    directions: Directions = {}
    for layer in (layer for layer, rows in enumerate(positions) if rows):
        moment = measured.second_moment(layer)
        blocks, size, _ = moment.shape
        if blocks * size != widths[layer]:
            raise LokiError(f"moments file {moments} is for {blocks * size} inputs, but the model has {widths[layer]}")
        count = free_directions(size, protect)
        if count == 0:
            raise LokiError(
                f"--protect {protect} leaves none of {size} input directions to train: choose a smaller one"
            )
        # Eigenvalues come in ascending order.
        vectors = torch.linalg.eigh(moment.to(device, torch.float64)).eigenvectors
        directions[layer] = vectors[..., :count].to("cpu", torch.float32).contiguous()
    return directions


def along(directions: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """`C U^T` `[k, blocks * n]` in at least float32: what coefficients along directions change of `k` rows.

    Args:
        directions: `U` `[blocks, n, r]`.
        coefficients: `C` `[k, blocks * r]`, on the same device.
    """
    wide = coefficients.to(torch.promote_types(coefficients.dtype, torch.float32))
    by_block = wide.view(len(wide), len(directions), -1).transpose(0, 1)
    return (by_block @ directions.to(wide.dtype).transpose(1, 2)).transpose(0, 1).reshape(len(wide), -1)


def digest(directions: Directions) -> str:
    """Hash that tells one set of directions from another."""
    hashed = xxhash.xxh3_128()
    for layer, tensor in sorted(directions.items()):
        hashed.update(f"{layer}|{tuple(tensor.shape)}|".encode())
        hashed.update(tensor.detach().to("cpu", torch.float32).contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def write_directions(folder: Path, directions: Directions) -> None:
    """Write directions into a model directory, replacing what it has."""
    with atomic_file(folder / DIRECTIONS_FILE, overwrite=True) as temporary:
        tensors = {str(layer): tensor.detach().to("cpu", torch.float32) for layer, tensor in directions.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def find_directions(model: str, expected_digest: str) -> Directions:
    """The directions in a model directory, or in the hub's snapshot of a model.

    Raises:
        LokiError: if there are none, they are damaged, or not those that are meant.
    """
    cached = cached_file(model, DIRECTIONS_FILE, _raise_exceptions_for_missing_entries=False) if model else None
    return read_directions(Path(cached or model, "" if cached else DIRECTIONS_FILE), expected_digest)


def read_directions(path: Path, expected_digest: str | None = None) -> Directions:
    """Read a file of directions.

    Args:
        path: the file.
        expected_digest: of the directions that are meant; None takes any.

    Raises:
        LokiError: if the file is missing or damaged, or holds other directions.
    """
    if not path.is_file():
        raise LokiError(f"{path} is missing: rows trained along chosen input directions cannot be told without it")
    try:
        # Where a model is made without weights, the default device is meta, which would make empty tensors of them.
        with torch.device("cpu"), safe_open(path, framework="pt") as file:
            directions = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise LokiError(f"{path} is truncated or damaged ({error}): copy it anew, or make the model again") from error
    if expected_digest is not None and digest(directions) != expected_digest:
        raise LokiError(f"{path} holds other directions than the model was made with: copy it anew")
    return directions
