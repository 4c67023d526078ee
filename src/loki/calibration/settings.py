"""How calibration data is made; the only place of these defaults. How it is read stands with its readers."""

from dataclasses import dataclass

from loki.errors import require_counts, require_seed


@dataclass(frozen=True)
class OwnTextSettings:
    """How a model writes texts.

    Attributes:
        tokens: write texts until they have so many tokens.
        length: tokens of a text.
        batch_size: texts that are written at a time.
        seed: of the draw.
        dtype: type to compute in: `auto` (as saved), float32, bfloat16 or float16.
        device: where to compute: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.
        trust_remote_code: run Python code that the model brings along.

    Raises:
        LokiError: if a value is out of range.
    """

    tokens: int = 131_072
    length: int = 256
    batch_size: int = 32
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_counts(self, "tokens", "length", "batch_size")
        require_seed(self)
