"""How analyses are run; what is attributed stands in `loki.kva.settings`. The only place of these defaults."""

from collections.abc import Sequence
from dataclasses import dataclass

from loki.errors import LokiError, require, require_counts, require_seed

AUTO = "auto"


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of `analyse` and `count_selections`.

    Attributes:
        batch_size: samples per batch; `auto` chooses by prompt length and device.
        dtype: type to compute in, a name in `loki.models.loading.DTYPES`; `auto` is the type the checkpoint was saved
            in.
        device: `auto` (a GPU if there is one), `cpu`, `mps`, `cuda` or `cuda:N`.
        device_map: how Transformers spreads the model over devices, `auto` over all; None for `device` alone.
        subjects: analyse these subjects only; None for all.
        samples_per_subject: draw so many samples of every subject; None for all.
        seed: of that draw, of the order of work, and of the samples to check.
        check: recompute so many randomly chosen samples with Captum, and fail if they differ.
        memory_budget: bytes the engine may use beside the model; None for what is free.
        trust_remote_code: run Python code that the model directory brings along.

    Raises:
        LokiError: for a number that makes no sense.
    """

    batch_size: int | str = AUTO
    dtype: str = AUTO
    device: str = AUTO
    device_map: str | None = None
    subjects: Sequence[str] | None = None
    samples_per_subject: int | None = None
    seed: int = 0
    check: int = 0
    memory_budget: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.batch_size != AUTO and (isinstance(self.batch_size, str) or self.batch_size < 1):
            raise LokiError(f"batch size {self.batch_size} makes no sense: give a positive number, or auto")
        if self.batch_size != AUTO:
            require_counts(self, "batch_size")
        require_counts(self, "check", least=0)
        require_counts(self, "samples_per_subject")
        require_seed(self)


@dataclass(frozen=True)
class MomentsSettings:
    """How second moments are measured.

    Attributes:
        max_length: tokens per text; longer ones are split.
        max_tokens: take texts until they have so many tokens. Default: all.
        samples_per_subject: draw so many texts of every subject. Default: all.
        seed: seed of the draw of texts, and of their order.
        block_size: inputs whose second moment is kept whole; wider layers are cut into blocks.
        batch_size: texts per forward pass.
        save_every: batches between saved intermediate sums.
        dtype: type to compute in: `auto` (as saved), float32, bfloat16 or float16.
        device: where to compute: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.
        trust_remote_code: run Python code that the model brings along.

    Raises:
        LokiError: if a value is out of range.
    """

    max_length: int = 512
    max_tokens: int | None = None
    samples_per_subject: int | None = None
    seed: int = 0
    block_size: int = 2048
    batch_size: int = 8
    save_every: int = 50
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_counts(self, "max_length", "samples_per_subject", "block_size", "batch_size", "save_every")
        require(self, "max_tokens", self.max_tokens is None or 0 < self.max_tokens < 2**63, "above 0")
        require_seed(self)
