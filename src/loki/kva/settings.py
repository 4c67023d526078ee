"""What is attributed, and how: the one place where the choices and their defaults stand."""

import re
from dataclasses import dataclass
from enum import StrEnum

from loki.errors import LokiError, require, require_seed

DEFAULT_STEPS = 7
MOST_STEPS, MOST_GAUSS_STEPS = 100_000, 1_000  # the points of the latter are eigenvalues, and that many take seconds


class Choice(StrEnum):
    """An option with a few values, written as text; `Definition("paper")` is `Definition.PAPER`."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        raise LokiError(f"{name} is {value!r}: use one of {', '.join(filter(None, cls))}")


class Definition(Choice):
    """What a score is; the definitions give different numbers.

    `captum` interpolates the MLP output at all positions, from its value on a sequence of token id 0 (Captum's
    `LayerIntegratedGradients`, as published). `paper` interpolates it at the last position only, from zero
    (arXiv 2505.22120, eq. 4-5). `sensitivity` is not an attribution: it sums the squared gradient of the text's
    log-probability over all positions, which is what a small change of the row costs (`loki.kva.sensitivity`).
    """

    CAPTUM = "captum"
    PAPER = "paper"
    SENSITIVITY = "sensitivity"


class IgMethod(Choice):
    """Rules of integration, by Captum's names."""

    PUBLISHED = ""  # the rule that the definition is published with
    TRAPEZOID = "riemann_trapezoid"
    LEFT = "riemann_left"
    RIGHT = "riemann_right"
    MIDDLE = "riemann_middle"
    GAUSS_LEGENDRE = "gausslegendre"


class Engine(Choice):
    """Who computes the scores.

    `fast` is the engine of this package, which refuses models that it cannot compute exactly; `captum` is Captum
    itself, slow; `auto` is fast, and where fast is not exact the model's own cache (under `paper`) or else, with a
    warning, Captum.
    """

    FAST = "fast"
    CAPTUM = "captum"
    AUTO = "auto"


class Quantity(Choice):
    """What F is at the attributed position: the target token's softmax probability, or its logit."""

    PROBABILITY = "probability"
    LOGIT = "logit"


class Sensitivity(Choice):
    """Whose log-probability the definition `sensitivity` differentiates.

    `sampled`: tokens drawn from the model's own distribution at every position (the Fisher information);
    `empirical`: the text's own tokens (the empirical Fisher information).
    """

    SAMPLED = "sampled"
    EMPIRICAL = "empirical"


PUBLISHED_RULES = {Definition.CAPTUM: IgMethod.TRAPEZOID, Definition.PAPER: IgMethod.LEFT}
IG_METHODS = tuple(filter(None, IgMethod))


@dataclass(frozen=True)
class AttributionSettings:
    """Settings of Knowledge Vector Attribution. Choices may be given as text; the enumerations say what each means.

    Where no `ig_method` is given, the field holds the published one's name once the settings are made. The definition
    `sensitivity` takes none of the fields from `steps` to `position`: they keep their defaults.

    Attributes:
        definition: what a score is: `captum` (as published), `paper` (eq. 4-5), or `sensitivity` (squared gradients).
        steps: points of the integration rule.
        ig_method: integration rule: riemann_trapezoid, riemann_left, riemann_right, riemann_middle or gausslegendre.
            Default: the one published with the definition (`captum`: riemann_trapezoid, `paper`: riemann_left).
        engine: who computes the scores: `fast`, `captum` (slow, the reference), or `auto`: fast, and captum where it
            must.
        quantity: what is attributed: the target's `probability`, or its `logit`.
        absolute: scores without their sign.
        position: attributed token position, counted like a Python index: -1 is the last. The prompt ends there, since
            later tokens cannot influence it.
        sensitivity: tokens of the definition `sensitivity`: `sampled`, or `empirical` (the text's).
        seed: seed of the tokens that the definition `sensitivity` draws.
        per_expert: in a mixture of experts, also the scores of each expert, see `loki.kva.experts`.

    Raises:
        LokiError: for a value that is not allowed.
    """

    definition: Definition = Definition.CAPTUM
    steps: int = DEFAULT_STEPS
    ig_method: IgMethod = IgMethod.PUBLISHED
    engine: Engine = Engine.AUTO
    quantity: Quantity = Quantity.PROBABILITY
    absolute: bool = False
    position: int = -1
    sensitivity: Sensitivity = Sensitivity.SAMPLED
    seed: int = 0
    per_expert: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            object.__setattr__(self, name, choices(getattr(self, name)))
        require_seed(self)
        if self.per_expert and (self.absolute or self.engine is Engine.CAPTUM):
            other = "absolute scores" if self.absolute else "Captum's scores"
            raise LokiError(f"{other} are not split among experts: leave out --per-expert, or the other")
        if self.definition is Definition.SENSITIVITY:
            self._check_nothing_else_is_set()
            return
        if self.sensitivity is not Sensitivity.SAMPLED:
            raise LokiError(f"sensitivity {self.sensitivity} belongs to the definition sensitivity: leave it out")
        if self.ig_method is IgMethod.PUBLISHED:
            object.__setattr__(self, "ig_method", PUBLISHED_RULES[self.definition])
        fewest = 1 if self.ig_method is IgMethod.GAUSS_LEGENDRE else 2
        if self.steps < fewest:
            raise LokiError(f"steps is {self.steps}: the rule {self.ig_method} needs at least {fewest}")
        most = MOST_GAUSS_STEPS if self.ig_method is IgMethod.GAUSS_LEGENDRE else MOST_STEPS
        require(self, "steps", self.steps <= most, f"at most {most:,} with the rule {self.ig_method}")

    @property
    def described_quantity(self) -> str:
        """What is differentiated, in the words that a scores file keeps."""
        if self.definition is Definition.SENSITIVITY:
            drawn = f", seed {self.seed}" if self.sensitivity is Sensitivity.SAMPLED and self.seed else ""
            return f"log-probability of {self.sensitivity} tokens{drawn}"
        return str(self.quantity)

    def _check_nothing_else_is_set(self) -> None:
        others = ("steps", "ig_method", "engine", "quantity", "absolute", "position")
        for name in others:
            if getattr(self, name) != getattr(type(self), name):
                option = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise LokiError(f"{option} belongs to attribution, not to the definition sensitivity: leave it out")


_CHOICES: dict[str, type[Choice]] = {
    "definition": Definition,
    "ig_method": IgMethod,
    "engine": Engine,
    "quantity": Quantity,
    "sensitivity": Sensitivity,
}
