"""The points of the integration paths of all layers, and which of them are computed together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loki.kva.integration import IntegrationRule


@dataclass(frozen=True)
class PathPoint:
    """A point of one layer's path: the model runs once with that layer's MLP output there.

    Attributes:
        layer: index of the layer.
        alpha: where on the path; z = z0 + alpha * (z_original - z0).
        weight: the rule's weight of the gradient there; 0 for a point that only gives F(z0).
    """

    layer: int
    alpha: float
    weight: float


@dataclass(frozen=True)
class IntegrationPath:
    """All points of an attribution.

    Attributes:
        points: those with an alpha below 1, by layer from the first to the last.
        original_weight: weight of the gradient at alpha = 1: the original run, which all layers share.
        complete_layers: layers whose scores alone sum to F(z) - F(z0) under exact integration; each has a point with
            alpha = 0.
    """

    points: list[PathPoint]
    original_weight: float
    complete_layers: list[int]

    @classmethod
    def of(cls, rule: IntegrationRule, layers: int, *, last_position_only: bool) -> "IntegrationPath":
        """The points that `rule` needs in a model of `layers` layers.

        Args:
            rule: points and weights.
            layers: number of layers.
            last_position_only: only the last position is interpolated, so that every layer's scores are complete;
                otherwise only the last layer's are, whose earlier positions do not reach the last one.
        """
        complete = list(range(layers)) if last_position_only else [layers - 1]
        alphas = list(zip(rule.alphas, rule.weights, strict=True))
        points = []
        for layer in range(layers):
            points += [PathPoint(layer, alpha, weight) for alpha, weight in alphas if alpha != 1.0]
            if layer in complete and 0.0 not in rule.alphas:
                points.append(PathPoint(layer, 0.0, 0.0))
        return cls(points, sum(weight for alpha, weight in alphas if alpha == 1.0), complete)


def groups_within(points: Sequence[PathPoint], cost: Callable[[PathPoint], int], budget: int) -> list[list[PathPoint]]:
    """Split `points`, in order, into groups whose summed cost stays within `budget`; at least one point in each."""
    groups: list[list[PathPoint]] = []
    left = 0
    for point in points:
        if not groups or cost(point) > left:
            groups.append([])
            left = budget
        groups[-1].append(point)
        left -= cost(point)
    return groups
