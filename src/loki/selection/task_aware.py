"""Rows by what they learn of a task per damage to everything else."""

import numpy as np

from loki.artefacts.positions import Positions
from loki.artefacts.scores import ScoresReader
from loki.errors import LokiError
from loki.selection.ranking import check_rows_left, excluded_rows, first_rows
from loki.selection.strategy import TASK_GRADIENT, Request


def by_task_per_damage(request: Request) -> Positions:
    """The rows with the highest ratio of the task's mean squared gradient to the mean sensitivity.

    A step along a row's gradient g gains |g|^2 of the task to first order, and costs in proportion to the row's
    sensitivity to second order. Equal ratios: the lower index first. A row without any sensitivity comes first if it
    has a gradient, and last if it has none.

    Raises:
        LokiError: if the files are of different models, the task's file holds no gradients, or too few rows are left
            after excluding.
    """
    scores, task = request.inputs.scores, request.inputs.task
    assert scores is not None and task is not None
    with ScoresReader(scores) as sensitivities, ScoresReader(task) as gradients:
        if gradients.provenance is None or gradients.provenance.definition != TASK_GRADIENT:
            raise LokiError(f"{task} holds no gradients of a task: name training data, or a file made from it")
        if sensitivities.provenance is None or (
            sensitivities.provenance.model_fingerprint != gradients.provenance.model_fingerprint
        ):
            raise LokiError(f"{task} is of another model ({gradients.provenance.model}) than {scores}")
        damage, gain = sensitivities.mean(), gradients.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(gain > 0, gain / damage, 0.0)
    excluded = excluded_rows(request.exclude, request.layers, request.hidden)
    check_rows_left(request.rows, excluded, request.scope)
    return first_rows([-ratio], request.rows, excluded, request.scope)
