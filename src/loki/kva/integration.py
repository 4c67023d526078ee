"""Integration rules: the points of the path from the baseline (0) to the activation (1), and their weights."""

from dataclasses import dataclass

from captum.attr._utils.approximation_methods import approximation_parameters


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
