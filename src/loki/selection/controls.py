"""Strategies without scores, the controls for those with: by chance, by the weights, by weights times their inputs.

Methods that choose parameters sparsely go by the last two.
"""

from collections.abc import Iterator

import numpy as np
import torch

from loki.artefacts.moments import Moments
from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.models.model_directory import ModelDirectory
from loki.selection.ranking import check_rows_left, excluded_rows, first_rows
from loki.selection.strategy import Request


def by_chance(request: Request) -> Positions:
    """As many rows of every layer as the request says, drawn evenly and without replacement.

    Raises:
        LokiError: if too few rows are left after excluding, or what to exclude does not fit the model.
    """
    excluded = excluded_rows(request.exclude, request.layers, request.hidden)
    check_rows_left(request.rows, excluded, request.scope)
    generator = np.random.default_rng(request.seed)
    return [
        np.sort(generator.choice(np.flatnonzero(~rows), size=request.rows, replace=False)).tolist() for rows in excluded
    ]


def by_magnitude(request: Request) -> Positions:
    """The rows with the smallest Euclidean norm.

    Raises:
        LokiError: if the model cannot be read, or too few rows are left after excluding.
    """
    norms = [torch.linalg.vector_norm(weight, dim=1) for weight in _weights(_model(request))]
    return _lowest(torch.stack(norms), request)


def by_wanda(request: Request) -> Positions:
    """The rows with the smallest sum over the inputs j of |W_ij| sqrt(E[h_j^2]) (arXiv 2306.11695).

    Where a model normalises the MLP's output, a token weighs as in its second moments, `1 / mean(z^2)`.

    Raises:
        LokiError: if model or moments cannot be read or do not belong together, or too few rows are left after
            excluding.
    """
    model, path = _model(request), request.inputs.moments
    assert path is not None
    moments = Moments(path)
    if moments.origin.model_fingerprint != model.fingerprint:
        raise LokiError(
            f"moments file {path} is of another model ({moments.origin.model}) than {model}: measure it with "
            "`loki moments`"
        )
    scores = []
    for layer, weight in enumerate(_weights(model)):
        squares = moments.mean_square(layer)
        if len(squares) != weight.shape[1]:
            raise LokiError(
                f"moments file {path} is for {len(squares)} inputs in layer {layer}, but the model has "
                f"{weight.shape[1]}: measure it again with `loki moments`"
            )
        scores.append(weight.abs() @ squares.sqrt())
    return _lowest(torch.stack(scores), request)


def _model(request: Request) -> ModelDirectory:
    assert request.inputs.model is not None
    return ModelDirectory.of(request.inputs.model)


def _weights(model: ModelDirectory) -> Iterator[torch.Tensor]:
    """`down_proj.weight` `[D, d_ff]` of every layer in float32, one in memory at a time; 0 in a layer without rows."""
    model.check_editable()
    for tensors in model.row_tensors:
        weights = [tensor for tensor in tensors if len(tensor.shape) > 1]
        found = [model.checkpoint.tensor(one.name).float().movedim(one.axis, 0).flatten(1) for one in weights]
        yield torch.cat(found, dim=1) if found else torch.zeros(model.text_config.hidden_size, 1)


def _lowest(scores: torch.Tensor, request: Request) -> Positions:
    if not scores.isfinite().all():
        layer = int((~scores.isfinite()).any(dim=1).nonzero()[0])
        raise LokiError(f"layer {layer} has NaN or infinite weights: fetch or save the model again")
    excluded = excluded_rows(request.exclude, request.layers, request.hidden)
    check_rows_left(request.rows, excluded, request.scope)
    return first_rows([scores.numpy().astype(np.float64)], request.rows, excluded, request.scope)
