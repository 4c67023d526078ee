"""What is attributed, and how."""

from dataclasses import dataclass

from loki.errors import LokiError

DEFAULT_STEPS = 7

DEFAULT_RULES = {
    # definition -> integration rule it is published with
    "captum": "riemann_trapezoid",
    "paper": "riemann_left",
}
IG_METHODS = ("riemann_trapezoid", "riemann_left", "riemann_right", "riemann_middle", "gausslegendre")
ENGINES = ("fast", "captum", "auto")
QUANTITIES = ("probability", "logit")


@dataclass(frozen=True)
class AttributionSettings:
    """Settings of Knowledge Vector Attribution.

    Attributes:
        definition: `captum` interpolates the MLP output at all positions, from its value on a sequence of token id 0
            (Captum's `LayerIntegratedGradients`, as published); `paper` interpolates it at the last position only,
            from zero (arXiv 2505.22120, eq. 4-5).
        steps: number of points of the integration rule.
        ig_method: integration rule, one of `IG_METHODS`; empty means the rule that the definition is published with
            (`captum`: riemann_trapezoid, `paper`: riemann_left). Holds the rule's name once constructed.
        engine: `fast` (the engine of this package, refusing models that it cannot compute exactly), `captum` (Captum
            itself, slow), or `auto` (fast, and Captum with a warning where fast is not exact).
        quantity: what F is at the last position, the target token's softmax `probability` or its `logit`.
        absolute: scores without their sign.
        position: position whose prediction is attributed, counted like a Python index. Later tokens cannot
            influence it, so the prompt ends there. -1 is the whole prompt.

    Raises:
        LokiError: for a value that is not allowed.
    """

    definition: str = "captum"
    steps: int = DEFAULT_STEPS
    ig_method: str = ""
    engine: str = "fast"
    quantity: str = "probability"
    absolute: bool = False
    position: int = -1

    def __post_init__(self) -> None:
        _check_choice("definition", self.definition, tuple(DEFAULT_RULES))
        if not self.ig_method:
            object.__setattr__(self, "ig_method", DEFAULT_RULES[self.definition])
        _check_choice("ig_method", self.ig_method, IG_METHODS)
        _check_choice("engine", self.engine, ENGINES)
        _check_choice("quantity", self.quantity, QUANTITIES)
        fewest = 1 if self.ig_method == "gausslegendre" else 2
        if self.steps < fewest:
            raise LokiError(f"steps is {self.steps}: the rule {self.ig_method} needs at least {fewest}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise LokiError(f"{name} is {value!r}: use one of {', '.join(allowed)}")
