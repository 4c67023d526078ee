"""The integral along a path from the activation baseline (0) to the activation (1): its rule, and how exact it is."""

from dataclasses import dataclass

from captum.attr._utils.approximation_methods import approximation_parameters
from torch import Tensor

from loki.kva.settings import DEFAULT_STEPS, IgMethod

FEW_STEPS = 0.2
"""Median completeness above which the number of steps is called too small.

The rules as published, 7 steps, give 0.05 to 0.15 where F changes smoothly along the path.
"""


@dataclass(frozen=True)
class IntegrationRule:
    """Points and weights of a quadrature rule on [0, 1].

    Attributes:
        alphas: the points, ascending.
        weights: one weight per point. Captum's trapezoid weights sum to 1 - 1/n, not to 1.
    """

    alphas: tuple[float, ...]
    weights: tuple[float, ...]


def integration_rule(ig_method: str, steps: int) -> IntegrationRule:
    """The rule that Captum uses under the name `ig_method` with `steps` points (`approximation_parameters`)."""
    step_sizes, alphas = approximation_parameters(ig_method)
    return IntegrationRule(tuple(map(float, alphas(steps))), tuple(map(float, step_sizes(steps))))


def completeness_gap(sums: Tensor, differences: Tensor) -> float:
    """How far summed attributions are from F(z) - F(z0); exact integration gives 0.

    Args:
        sums: attributions summed over the nodes of a layer, `[layers]`.
        differences: F(z) - F(z0) of the same layers, `[layers]`.

    Returns:
        |sums - differences| / |differences| in the 2-norm; 0 where both are zero.
    """
    sums, differences = sums.cpu().double(), differences.cpu().double()
    gap = float((sums - differences).norm())
    return gap / max(float(differences.norm()), 1e-300) if gap else 0.0


def completeness_advice(completeness: float, ig_method: str, steps: int) -> str | None:
    """What to tell the user of an analysis whose integration misses too much; None if it does not.

    More points of a rule with the end points help little where F changes at once beside them: a norm behind the MLP
    (Gemma) makes F jump near 0, where such a rule takes the gradient for that of a whole step. Gauss-Legendre's points
    lie inside and are the better ones everywhere (`docs/concepts/definitions.md` has figures).

    Args:
        completeness: median over the samples, see `loki.kva.attributor.Attribution`; NaN if there were none.
        ig_method: the integration rule, by Captum's name.
        steps: points of the rule.
    """
    if not completeness > FEW_STEPS:
        return None
    missed = f"the integration misses {completeness:.0%} of what it should sum up to (median of the samples): "
    if ig_method == IgMethod.GAUSS_LEGENDRE:
        return f"{missed}{steps} steps are few for this model, try --steps {2 * steps}"
    better = f"--ig-method {IgMethod.GAUSS_LEGENDRE} --steps {max(steps, DEFAULT_STEPS)}"
    return f"{missed}{steps} steps of {ig_method} are few for this model, try {better}"
