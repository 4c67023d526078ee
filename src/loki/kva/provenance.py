"""Where scores come from: what has to agree before scores may stand in one file."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from typing import Any, Self

_LIBRARIES = ("loki-llm", "torch", "transformers", "captum", "numpy", "h5py")

SCORE_FIELDS = (
    "model_fingerprint",
    "definition",
    "steps",
    "ig_method",
    "quantity",
    "absolute",
    "position",
    "dtype",
)
"""The fields that decide what a score means. Scores that differ in one of them cannot be compared."""


@dataclass(frozen=True)
class Provenance:
    """What the scores of one file were computed from, and how.

    Attributes:
        model: the model as the user named it.
        model_fingerprint: hash of its weights, see `loki.models.checkpoint.fingerprint`.
        definition: `captum` or `paper`.
        steps: number of integration steps.
        ig_method: integration rule.
        engine: `fast`, `captum` or `auto`, as asked for.
        quantity: what is attributed, `probability` or `logit` of the target token.
        absolute: whether the scores are absolute values.
        position: the attributed token position, counted from the end if negative.
        dtype: type the model computed in.
        source: the calibration data as the user named it.
        source_digest: SHA-256 over the encoded samples.
        versions: of the libraries involved, by name.
    """

    model: str
    model_fingerprint: str
    definition: str
    steps: int
    ig_method: str
    engine: str
    quantity: str
    absolute: bool
    position: int
    dtype: str
    source: str
    source_digest: str
    versions: dict[str, str]

    def attributes(self) -> dict[str, Any]:
        """The fields as HDF5 attributes; `versions` as JSON text."""
        return {**asdict(self), "versions": json.dumps(self.versions)}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self | None:
        """The provenance that HDF5 attributes hold; None if there is none (files of the published project)."""
        names = [field.name for field in fields(cls)]
        if any(name not in attributes for name in names):
            return None
        plain = {name: _plain(attributes[name]) for name in names}
        return cls(**{**plain, "versions": json.loads(plain["versions"])})

    def differences(self, other: Self, names: Iterable[str] = SCORE_FIELDS) -> list[str]:
        """The named fields in which `other` is different, as texts `steps 7 and 9`, own value first."""
        return differences(asdict(self), asdict(other), names)


def differences(first: Mapping[str, Any], second: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The named entries that are not equal, as texts `steps 7 and 9`."""
    return [f"{name} {first.get(name)} and {second.get(name)}" for name in names if first.get(name) != second.get(name)]


def combined_provenance(parts: Sequence[Provenance]) -> Provenance:
    """Provenance of the samples of several files together; the parts must agree in `SCORE_FIELDS`.

    The sources' names are joined, and the digest becomes one over the parts' digests.
    """
    sources = list(dict.fromkeys(part.source for part in parts))
    digest = hashlib.sha256(" ".join(part.source_digest for part in parts).encode())
    engines = sorted({part.engine for part in parts})
    return replace(parts[0], source=" + ".join(sources), source_digest=digest.hexdigest(), engine=" + ".join(engines))


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that scores depend on."""
    return {name: version(name) for name in _LIBRARIES}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
