"""What the files of `loki evaluate`, `loki compare` and `loki ablate` must look like, before anything is made of them.

Only what LoKI reads is declared; what `lm_eval` writes beside it is let through.
"""

from collections import Counter
from typing import Annotated, Any, Self

from pydantic import Field, FiniteFloat, model_validator

from loki.inputs import Strict

MEASURE_AGAIN = "make the file again with `loki evaluate`, `loki compare` or `loki ablate`"
_Number = Annotated[FiniteFloat, Field(ge=-1e9, le=1e9)]
_Count = Annotated[int, Field(ge=0, lt=2**48)]


class _TextValues(Strict):
    digest: str
    nll: list[_Number]
    tokens: list[_Count]
    nll_by_text: list[_Number]
    bytes: list[_Count]
    window: Annotated[int, Field(ge=1, lt=2**32)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.nll) != len(self.tokens) or len(self.nll_by_text) != len(self.bytes):
            raise ValueError("should have as many losses as windows and texts")
        if not sum(self.tokens) or not sum(self.bytes):
            raise ValueError("should be of one token or more")
        return self


class _ItemValues(Strict):
    score: _Number
    prompt: str = ""
    target: str = ""
    answer: str = ""


class _TaskValues(Strict):
    task: str
    metric: str
    items: Annotated[dict[str, _ItemValues], Field(min_length=1)]
    fewshot: int = 0
    version: str = ""
    higher_is_better: bool = True
    chance: _Number = 0.0
    setting: str = ""


class _DataValues(Strict):
    name: str
    nll: list[_Number]
    tokens: Annotated[list[Annotated[int, Field(ge=1, lt=2**48)]], Field(min_length=1)]
    items: _TaskValues


class _OwnValues(Strict):
    name: str | None = None
    fingerprint: str = ""
    texts: dict[str, _TextValues] = Field(default_factory=dict)
    data: _DataValues | None = None


class ResultsFile(Strict):
    """Results of one model, of `loki evaluate` or `lm_eval`."""

    results: dict[str, Any]
    configs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] | None = None
    model_name: str | None = None
    chat_template_sha: str | None = None
    system_instruction_sha: str | None = None
    loki: _OwnValues | None = None


class _Interval(Strict):
    low: _Number | None = None
    high: _Number | None = None


class _Forgetting(Strict):
    percent: _Number | None = None
    interval: _Interval | None = None
    tasks: "dict[str, _Forgetting]" = Field(default_factory=dict)


class _Divergence(Strict):
    kl: _Number | None = None


class _ComparedText(Strict):
    kl: _Divergence | None = None


class _Right(Strict):
    new: _Number | None = None


class _ComparedData(Strict):
    right: _Right


class _Verdict(Strict):
    outcome: str


class _Comparison(Strict):
    new: str
    forgetting: _Forgetting | None = None
    texts: list[_ComparedText] = Field(default_factory=list)
    data: _ComparedData | None = None
    verdict: _Verdict


class _Table(Strict):
    title: str
    header: list[str]
    rows: list[list[str]]


class ComparisonFile(Strict):
    """What `loki compare --output` writes, see `loki.report.comparison.comparison_file`."""

    comparisons: Annotated[list[_Comparison], Field(min_length=1)]
    tables: list[_Table] = Field(default_factory=list)
    reasons: list[str] = Field(default_factory=list)


class _Point(Strict):
    order: str
    seed: int | None = None
    quota: Annotated[FiniteFloat, Field(gt=0, le=100)]
    loss: _Number
    scores: dict[str, _Number] = Field(default_factory=dict)


class AblationFile(Strict):
    """What `loki ablate --output` writes."""

    base_loss: _Number
    base_scores: dict[str, _Number]
    points: Annotated[list[_Point], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        drawn = Counter((point.order, point.quota) for point in self.points)
        for order in {point.order for point in self.points}:
            if len({drawn[order, point.quota] for point in self.points}) > 1:
                raise ValueError(f"should have as many points of every quota for {order}")
        return self
