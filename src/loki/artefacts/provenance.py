"""Where scores come from: what has to agree before scores may stand in one file."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, get_type_hints

from pydantic import create_model

from loki.artefacts.differences import differences
from loki.inputs import Strict, checked, read_json, reading

_AS_JSON = ("versions", "stopping")
_LIBRARIES = ("loki-llm", "torch", "transformers", "captum", "numpy", "h5py")

SCORE_FIELDS = (
    "model_fingerprint",
    "config_digest",
    "definition",
    "steps",
    "ig_method",
    "quantity",
    "absolute",
    "position",
    "per_expert",
    "dtype",
)
"""The fields that decide what a score means. Scores that differ in one of them cannot be compared."""

# Entries of config.json that do not change what a model computes in evaluation mode; `_` stands for private ones.
_IRRELEVANT = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "initializer_range", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "tokenizer_class"),
    *("output_attentions", "output_hidden_states", "return_dict"),
    *("id2label", "label2id", "problem_type", "task_specific_params"),
}


@dataclass(frozen=True)
class Provenance:
    """What the scores of one file were computed from, and how.

    Attributes:
        model: the model as the user named it.
        model_fingerprint: hash of its weights, see `loki.models.checkpoint.fingerprint`.
        definition: `captum`, `paper` or `sensitivity`.
        steps: number of integration steps; 0 where nothing is integrated.
        ig_method: integration rule; empty where nothing is integrated.
        engine: `fast`, `captum` or `auto`, as asked for.
        quantity: what is differentiated: `probability` or `logit` of the target token; for `sensitivity`,
            `log-probability of sampled tokens` (with `, seed N` unless that is 0) or `of empirical tokens`.
        absolute: whether the scores are absolute values.
        position: the attributed token position, counted from the end if negative.
        dtype: type the model computed in.
        source: the calibration data as the user named it.
        source_digest: SHA-256 over the encoded samples.
        versions: of the libraries involved, by name.
        per_expert: whether the scores of each expert are there as well.
        config_digest: hash of the model's configuration, see `config_digest`; empty in files of older releases.
        stopping: where the analysis stopped early: `until_stable`, `quotas`, and the `overlaps` seen at its
            checkpoints. Empty if all samples were wanted.
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
    per_expert: bool = False
    config_digest: str = ""
    stopping: dict[str, Any] = field(default_factory=dict)

    def attributes(self) -> dict[str, Any]:
        """The fields as HDF5 attributes; those that are dictionaries as JSON text."""
        return {name: json.dumps(value) if name in _AS_JSON else value for name, value in asdict(self).items()}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], *, origin: str = "scores file") -> Self | None:
        """The provenance that HDF5 attributes hold; None if there is none (files of the published project).

        Args:
            attributes: of the file.
            origin: what the file is called in messages.

        Raises:
            LokiError: if an attribute is of another type.
        """
        needed = [own.name for own in fields(cls) if own.default is own.default_factory is MISSING]
        if any(name not in attributes for name in needed):
            return None
        plain = {own.name: _plain(attributes[own.name]) for own in fields(cls) if own.name in attributes}
        for name in _AS_JSON:
            if name in plain:
                with reading(f"attribute {name} of", origin, advice="analyse again, or copy it again"):
                    plain[name] = json.loads(plain[name])
        checked(_fields_of(cls), plain, origin, advice="it is damaged: analyse again, or copy it again")
        return cls(**plain)

    def differences(self, other: Self, names: Iterable[str] = SCORE_FIELDS) -> list[str]:
        """The named fields in which `other` is different, as texts `steps 7 and 9`, own value first.

        An unknown digest of the configuration agrees with any.
        """
        known = [name for name in names if name != "config_digest" or (self.config_digest and other.config_digest)]
        return differences(asdict(self), asdict(other), known)


def combined_provenance(parts: Sequence[Provenance]) -> Provenance:
    """Provenance of the samples of several files together; the parts must agree in `SCORE_FIELDS`.

    The sources' names are joined, and the digest becomes one over the parts' digests. That one stopped early is no
    longer said.
    """
    sources = list(dict.fromkeys(part.source for part in parts))
    digest = hashlib.sha256(" ".join(part.source_digest for part in parts).encode())
    engines = sorted({part.engine for part in parts})
    return replace(
        parts[0],
        source=" + ".join(sources),
        source_digest=digest.hexdigest(),
        engine=" + ".join(engines),
        config_digest=next((part.config_digest for part in parts if part.config_digest), ""),
        stopping={},
    )


def config_digest(directory: Path) -> str:
    """Hash of all in a model directory's config.json that decides what the model computes."""
    relevant = _relevant(read_json(directory / "config.json", what="model configuration"))
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:32]


def _relevant(value: Any) -> Any:
    if isinstance(value, dict):
        kept = (name for name in value if name not in _IRRELEVANT and not name.startswith("_"))
        return {name: _relevant(value[name]) for name in kept}
    return value


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that scores depend on."""
    return {name: version(name) for name in _LIBRARIES}


def _fields_of(cls: type[Provenance]) -> type[Strict]:
    """The schema of the attributes: the dataclass's own fields, without conversion of values."""
    hints = get_type_hints(cls)
    present: Any = {own.name: (hints[own.name], ...) for own in fields(cls) if own.default is own.default_factory}
    optional: Any = {own.name: (hints[own.name], None) for own in fields(cls) if own.name not in present}
    schema: type[Strict] = create_model("Attributes", __base__=Strict, **present, **optional)
    return schema


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "size", 0) == 1 and hasattr(value, "item") else value
