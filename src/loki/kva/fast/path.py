"""Which interpolated rows are computed, and which of them together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loki.kva.integration import IntegrationRule


@dataclass(frozen=True)
class PathRow:
    """One run of the model with the MLP output of one layer at one point of its path.

    Attributes:
        layer: index of the layer.
        alpha: the point; z = z0 + alpha * (z_real - z0).
        weight: the rule's weight of the gradient there; 0 for a row that only gives F(z0).
    """

    layer: int
    alpha: float
    weight: float


@dataclass(frozen=True)
class IntegrationPath:
    """All rows of an attribution.

    Attributes:
        rows: the runs with an interpolated layer, by layer from the first to the last.
        real_weight: weight of the gradient at alpha = 1: the unperturbed run, which all layers share.
        complete_layers: layers whose scores alone sum to F(z) - F(z0) under exact integration; each has a row with
            alpha = 0.
    """

    rows: list[PathRow]
    real_weight: float
    complete_layers: list[int]

    @classmethod
    def of(cls, rule: IntegrationRule, layers: int, *, closed: bool) -> "IntegrationPath":
        """The rows that `rule` needs in a model of `layers` layers.

        Args:
            rule: points and weights.
            layers: number of layers.
            closed: only the last position is interpolated, so that every layer's scores are complete; otherwise only
                the last layer's are, whose earlier positions do not reach the last one.
        """
        complete = list(range(layers)) if closed else [layers - 1]
        points = list(zip(rule.alphas, rule.weights, strict=True))
        rows = []
        for layer in range(layers):
            rows += [PathRow(layer, alpha, weight) for alpha, weight in points if alpha != 1.0]
            if layer in complete and 0.0 not in rule.alphas:
                rows.append(PathRow(layer, 0.0, 0.0))
        return cls(rows, sum(weight for alpha, weight in points if alpha == 1.0), complete)


def groups_within(rows: Sequence[PathRow], cost: Callable[[PathRow], int], budget: int) -> list[list[PathRow]]:
    """Split `rows`, in order, into groups whose summed cost stays within `budget`; at least one row in each."""
    groups: list[list[PathRow]] = []
    left = 0
    for row in rows:
        if not groups or cost(row) > left:
            groups.append([])
            left = budget
        groups[-1].append(row)
        left -= cost(row)
    return groups
