"""What `--data` may name: a file, a directory or a hub data set, with its weight in a mixture."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from loki.errors import LokiError


@dataclass(frozen=True)
class Source:
    """One source of training data.

    Attributes:
        location: a file, a directory, or the id of a hub data set.
        weight: share of the examples that come from here, beside the weights of the other sources; None where sources
            are not weighted, and all examples are taken.
        split: which split, where there are several; None takes `train`.
        subset: which subset (configuration) of a hub data set.

    Raises:
        LokiError: if the weight is not above 0.
    """

    location: str
    weight: float | None = None
    split: str | None = None
    subset: str | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise LokiError(f"--data {self.location}:{self.weight:g}: the weight must be above 0")

    @classmethod
    def parse(cls, text: str | Path, *, split: str | None = None, subset: str | None = None) -> Self:
        """A source as it is written on the command line: a location, or `location:weight` (`a.jsonl:0.7`).

        What exists under the whole name is taken as a location without a weight.
        """
        named = re.fullmatch(r"(.+):([0-9.]+(?:[eE][-+]?[0-9]+)?)", str(text))
        if not named or Path(text).exists():
            return cls(str(text), split=split, subset=subset)
        try:
            weight = float(named[2])
        except ValueError as error:
            raise LokiError(f"--data {text}: {named[2]} is not a weight: write a number, as in a.jsonl:0.7") from error
        return cls(named[1], weight, split, subset)

    @property
    def path(self) -> Path | None:
        """The local file or directory; None for a hub data set."""
        path = Path(self.location).expanduser()
        return path if path.exists() else None


Data = str | Path | Source | Sequence[str | Path | Source]


def as_sources(data: Data, *, split: str | None = None, subset: str | None = None) -> list[Source]:
    """The sources that `data` names, in order.

    Args:
        data: one source or several, as text (see `Source.parse`), path or `Source`.
        split: which split to take of all that name none.
        subset: which subset of all that name none.

    Raises:
        LokiError: if there is none, or only some have a weight.
    """
    given = [data] if isinstance(data, str | Path | Source) else list(data)
    sources = [item if isinstance(item, Source) else Source.parse(item) for item in given]
    sources = [replace(source, split=source.split or split, subset=source.subset or subset) for source in sources]
    if not sources:
        raise LokiError("no training data is named: give --data")
    unweighted = [source.location for source in sources if source.weight is None]
    if 0 < len(unweighted) < len(sources):
        raise LokiError(f"--data {unweighted[0]} has no weight, and others have: give all of them a weight, or none")
    return sources


def local_paths(data: Data) -> list[Path]:
    """The files and directories among the sources, which an output must not overwrite."""
    return [source.path for source in as_sources(data) if source.path]
