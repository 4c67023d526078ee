"""Model cards, in the hub's format: what a directory holds, where it comes from, which rows, how to load it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCardData

from loki.artefacts.positions import Positions
from loki.artefacts.run_layout import TRAINING
from loki.artefacts.run_records import read_record
from loki.files import atomic_file

_DAMAGE = "## Damage"
_TEXT = """# {name}

{introduction}

## Rows

- {rows}; nothing else {changed}.
- Training data: {data}.
- Made with loki-llm {version}.

{damage}## How to load it

```python
{load}
```
"""
_IMPLANTED = """{base} with new knowledge implanted by LoKI (Low-damage Knowledge Implanting,
[arXiv 2505.22120](https://arxiv.org/abs/2505.22120))."""
_LOAD_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")"""
_LOAD_ADAPTER = """from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("PATH")"""
_NOT_MEASURED = "Not measured yet: `loki compare BASE PATH` measures it."


@dataclass(frozen=True)
class Kind:
    """What a directory holds.

    Attributes:
        introduction: what its card begins with; `{base}` is the base model.
        changed: what it is with the rows, and with nothing else.
        load: Python code that loads it.
        library: that loads it, as the hub calls it.
        measured: whether its damage is a matter of the card.
    """

    introduction: str
    changed: str
    load: str
    library: str = "transformers"
    measured: bool = False


RESTORED = Kind(
    f"{_IMPLANTED} It is an ordinary model: loading it needs no LoKI.", "was changed", _LOAD_MODEL, measured=True
)
LOKI_MODEL = Kind(
    "{base} as a LoKI model (Low-damage Knowledge Implanting, [arXiv 2505.22120](https://arxiv.org/abs/2505.22120)): "
    "a training\nchanges the selected rows alone, and `loki restore` makes an ordinary model of it.",
    "is trained",
    f"import loki  # or pass trust_remote_code=True\n{_LOAD_MODEL}",
)
ADAPTER = Kind(
    f"An adapter: {_IMPLANTED}\n`loki restore` merges it into its base.", "is changed", _LOAD_ADAPTER, library="peft"
)


def write_model_card(
    directory: Path,
    kind: Kind,
    *,
    name: str,
    base: str,
    positions: Positions,
    hidden: int | None,
    trained: Path | None = None,
) -> None:
    """Write README.md into a directory; one that is there is replaced.

    Args:
        directory: the model or adapter.
        kind: which of both, and in which state.
        name: what to call it.
        base: the base model, a hub id or a path.
        positions: the rows that training may change.
        hidden: number of rows D per layer; None where it is not known.
        trained: directory with the record of the training, if there was one.
    """
    record = (read_record(trained, TRAINING) if trained else None) or {}
    digest = record.get("data")
    text = _TEXT.format(
        name=name,
        introduction=kind.introduction.format(base=base),
        rows=_rows(positions, hidden),
        changed=kind.changed,
        data=f"SHA-256 {digest}" if isinstance(digest, str) else "not recorded",
        version=version("loki-llm"),
        damage=f"{_DAMAGE}\n\n{_damage(record)}\n\n" if kind.measured else "",
        load=kind.load,
    )
    on_hub = base.count("/") == 1 and not base.startswith(("/", ".")) and not Path(base).exists()
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name=kind.library,
        pipeline_tag="text-generation",
        tags=["loki", "knowledge-implanting"],
    )
    (directory / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def write_damage(directory: Path, lines: Sequence[str]) -> None:
    """Say in a model's card what was measured of its damage; nothing is done where there is no card of ours."""
    path = directory / "README.md"
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    before, heading, after = content.partition(f"{_DAMAGE}\n")
    if not heading:
        return
    rest = after.partition("\n## ")[2]
    measured = "\n".join(f"- {line}" for line in lines) or _NOT_MEASURED
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(f"{before}{heading}\n{measured}\n\n## {rest}", encoding="utf-8")


def _rows(positions: Positions, hidden: int | None) -> str:
    rows, layers = sum(map(len, positions)), sum(map(bool, positions))
    share = ""
    if hidden:
        total = hidden * len(positions)
        share = f" ({100 * rows / total:.3g}% of the {total} rows)"
    return f"{rows} rows of `down_proj.weight` in {layers} layers{share}"


def _damage(record: dict[str, object]) -> str:
    """What the training itself saw of it."""
    learned = record.get("learned")
    found = learned.get("damage") if isinstance(learned, dict) else None
    if not isinstance(found, float):
        return _NOT_MEASURED
    return f"- KL {found:.3g} nats per token on a general text after training; `loki compare BASE PATH` says more."
