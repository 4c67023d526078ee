"""A model card for a restored model, in the hub's format: where it comes from, what was changed, how to load it."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from loki.artefacts.positions import Positions
from loki.artefacts.run_records import read_record

_TRAINING = "training.json"  # what a training leaves, see loki.implanting.training.output
_DAMAGE = "## Damage"
_TEXT = """# {name}

{base} with new knowledge implanted by LoKI (Low-damage Knowledge Implanting,
[arXiv 2505.22120](https://arxiv.org/abs/2505.22120)). It is an ordinary model: loading it needs no LoKI.

## What was changed

- {rows} rows of `down_proj.weight` in {layers} layers ({quota} of the {all_rows} rows); nothing else.
- Training data: {data}.
- Made with loki-llm {version}.

{damage_heading}

{damage}

## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```
"""
_NOT_MEASURED = "Not measured yet: `loki compare BASE PATH` measures it."


def write_model_card(
    directory: Path, *, name: str, base: str, positions: Positions, hidden: int, trained: Path
) -> None:
    """Write README.md into the directory of a restored model.

    Args:
        directory: the model directory.
        name: of the model.
        base: the base model, a hub id or a path.
        positions: the rows that training may have changed.
        hidden: number of rows D per layer.
        trained: what was restored; its record of the training says which data it was.
    """
    rows, total = sum(map(len, positions)), hidden * len(positions)
    digest = (read_record(trained, _TRAINING) or {}).get("data")
    text = _TEXT.format(
        name=name,
        base=base,
        rows=rows,
        layers=sum(map(bool, positions)),
        quota=f"{100 * rows / total:.3g}%",
        all_rows=total,
        data=f"SHA-256 {digest}" if isinstance(digest, str) else "not recorded",
        version=version("loki-llm"),
        damage_heading=_DAMAGE,
        damage=_NOT_MEASURED,
    )
    on_hub = base.count("/") == 1 and not base.startswith(("/", ".")) and not Path(base).exists()
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["loki", "knowledge-implanting"],
    )
    (directory / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def write_damage(directory: Path, lines: Sequence[str]) -> None:
    """Say in a model's card what was measured of its damage; nothing is done where there is no such card."""
    path = directory / "README.md"
    if not path.is_file():
        return
    card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    before, heading, after = card.content.partition(f"{_DAMAGE}\n")
    if not heading:
        return
    rest = after.partition("\n## ")[2]
    measured = "\n".join(f"- {line}" for line in lines) or _NOT_MEASURED
    path.write_text(f"{before}{heading}\n{measured}\n\n## {rest}", encoding="utf-8")
