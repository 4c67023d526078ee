"""What works for each family, from runs on tiny random models: docs/reference/families.md.

`python -m tests.family_table` runs every family and writes the page; with names of families it prints their lines.
Each phase is a process of its own, `python -m tests.family_table PHASE FOLDER...`: what one process learnt of a family,
the next must find out for itself.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.programs import start_python

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "families.md"
COLUMNS = ("family", "fast engine", "Captum", "directory", "adapter", "restored", "verified")
HEADER = """# Model families

What ran for each family on a tiny random model, every phase in a process of its own, with Transformers {transformers},
PEFT {peft} and TRL {trl}. `python -m tests.family_table` runs all of them and writes this page; the slow tests run one
of each kind, and compare the lines. A family that is missing here may work as well:
[try it](../guides/adding-an-architecture.md).

- *Fast engine*: exact and checked on every prompt, with both definitions of a score or with the one that is named
  (state spaces and linear attention: `paper`); where it is not exact, *Captum* takes over.
- *Directory* and *adapter*: the two ways to train rows (`loki create` and `train`; PEFT). *Refused*: in one line, and
  nothing is made.
- *Restored* and *verified*: what came of them, an ordinary model in which nothing but selected rows differs, bit for
  bit.
- Behind a family with [experts](../guides/experts.md) stands the `--experts` that it was run with.

"""
# One of each kind: found by structure, refused, an odd block, a state space whose buffers no weight fills, linear
# attention in a wrapper, and experts of each choice, all of them stored together (transposed) and one by one.
SAMPLE = (
    "seed_oss",
    "gpt2",
    "opt",
    "falcon_h1",
    "qwen3_5",
    "deepseek_v3",
    "lfm2_moe",
    "gpt_oss",
    "qwen3_moe",
)
# Found by structure, with a configuration of common fields alone.
BY_STRUCTURE = ("ernie4_5", "glm4", "olmo3", "phi", "seed_oss", "stablelm")
EXPERTS = {
    "deepseek_v3": "shared",
    "gemma4_text": "shared",
    "glm4_moe": "shared",
    "gpt_oss": "all",
    "granitemoehybrid": "shared",
    "lfm2_moe": "dense",
    "llama4": "shared",
    "llama4_text": "all",
    "mixtral": "all",
    "qwen3_moe": "all",
    "qwen3_next": "shared",
}
POSITIONS = [[1, 30], [], [0, 4, 5]]
TOKENS = [5, 9, 40, 77, 123]
PHASES = ("analyse", "directory", "adapter", "restore", "verify")


def families() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from tests import tiny_models as tiny

    tables = (tiny.FAMILIES, tiny.ATTENTION_FAMILIES, tiny.ODD_FAMILIES, tiny.EXPERT_FAMILIES, tiny.HYBRID_FAMILIES)
    every = {name for table in (*tables, tiny.WRAPPERS, tiny.EXPERT_WRAPPERS) for name in table}
    return sorted({*every, *BY_STRUCTURE} & set(CONFIG_MAPPING))


def positions_of(family: str) -> list[list[int]]:
    return [POSITIONS[0], [], []] if EXPERTS.get(family) == "dense" else POSITIONS


def analyse(folder: Path) -> dict[str, str]:
    from loki.kva import AttributionSettings
    from loki.kva.captum_engine import CaptumAttributor
    from loki.kva.fast.engine import FastAttributor
    from loki.kva.fast.from_cache import FromCacheAttributor
    from loki.models.loading import load_model

    model = load_model(folder / "base")

    def works(engine: Callable[..., Any], definition: str) -> bool:
        try:
            with engine(model, AttributionSettings(definition=definition, steps=2)) as attributor:
                attributor.attribute([TOKENS], [None])
        except Exception as error:
            say(folder, f"{engine.__name__} {definition}", error)
            return False
        return True

    fast = {
        "captum": works(FastAttributor, "captum"),
        "paper": works(FastAttributor, "paper") or works(FromCacheAttributor, "paper"),
    }
    slow = {definition: works(CaptumAttributor, definition) for definition in fast}

    def cell(found: dict[str, bool]) -> str:
        done = [definition for definition, worked in found.items() if worked]
        return {0: "no", 1: f"`{''.join(done)}`", 2: "yes"}[len(done)]

    return {"fast engine": cell(fast), "Captum": cell(slow)}


def directory(folder: Path) -> dict[str, str]:
    from loki.errors import LokiError
    from tests import fresh_process

    try:
        fresh_process.create(folder)
    except LokiError as error:
        return {"directory": refused(folder, "loki_model", error)}
    fresh_process.train(folder)
    return {"directory": "yes"}


def adapter(folder: Path) -> dict[str, str]:
    from loki.errors import LokiError
    from tests import fresh_process

    try:
        fresh_process.adapter(folder)
    except LokiError as error:
        return {"adapter": refused(folder, "zero", error)}
    return {"adapter": "yes"}


def refused(folder: Path, made: str, error: Exception) -> str:
    """What a cell says of an error that is meant for users: a refusal only if it came before anything was made."""
    say(folder, made, error)
    return "no" if (folder / made).exists() else "refused"


def restore(folder: Path) -> dict[str, str]:
    from loki import restore_loki_model

    made = [folder / name for name in ("trained", "adapter") if (folder / name).is_dir()]
    for source in made:
        restore_loki_model(source, folder / f"restored_{source.name}", base_model=folder / "base")
    return {"restored": "yes" if made else "-"}


def verify(folder: Path) -> dict[str, str]:
    from loki.artefacts.positions import read_positions
    from loki.restoring.verify import verify as compare
    from tests.fresh_process import experts

    positions = read_positions(folder / "positions.json")
    made = [path for path in (*sorted(folder.glob("restored_*")), folder / "trained") if path.is_dir()]
    for tuned in made:  # the LoKI model as well: it must compute as its base does
        report = compare(folder / "base", tuned, positions, experts=experts(folder))
        report.raise_for_differences()
        assert report.changed_rows > 0 and report.prompts > 0
    return {"verified": "yes" if made else "-"}


def say(folder: Path, what: str, error: Exception) -> None:
    print(f"{folder.name}: {what}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)


def run_phase(phase: str, folder: Path) -> None:
    """Run one phase, and add what it gave to `cells.json`; a cell that is not there says no.

    Nothing is held back from the page: whatever is raised is a no, and said on standard error.
    """
    place = folder / "cells.json"
    cells = json.loads(place.read_text())
    try:
        cells |= globals()[phase](folder)
    except Exception as error:
        say(folder, phase, error)
    place.write_text(json.dumps(cells))


def lines(chosen: list[str], folder: Path) -> list[str]:
    """Run families, and give their lines of the table."""
    from loki.artefacts.positions import write_positions
    from tests.tiny_models import save_tiny_model

    folders = [folder / family for family in chosen]
    for place in folders:
        save_tiny_model(place / "base", place.name)
        write_positions(place / "positions.json", positions_of(place.name))
        if place.name in EXPERTS:
            (place / "experts").write_text(EXPERTS[place.name])
        title = f"`{place.name}`" + (f", `{EXPERTS[place.name]}`" if place.name in EXPERTS else "")
        (place / "cells.json").write_text(json.dumps({"family": title}))
    for phase in PHASES:
        parts = [part for part in (folders[::2], folders[1::2]) if part]
        programs = [start_python("-m", "tests.family_table", phase, *part) for part in parts]
        for program in programs:
            print(program.wait(0, timeout=600).stderr, file=sys.stderr)
    found = [json.loads((place / "cells.json").read_text()) for place in folders]
    return [f"| {' | '.join(cells.get(column, 'no') for column in COLUMNS)} |" for cells in found]


def page(rows: list[str]) -> str:
    rule = ["---"] * len(COLUMNS)
    header = HEADER.format(**{package: version(package) for package in ("transformers", "peft", "trl")})
    return header + "\n".join([f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(rule)} |", *rows]) + "\n"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    if sys.argv[1:2] and sys.argv[1] in PHASES:
        for argument in sys.argv[2:]:
            run_phase(sys.argv[1], Path(argument))
    else:
        with tempfile.TemporaryDirectory() as name:
            rows = lines(sys.argv[1:] or families(), Path(name))
        if sys.argv[1:]:
            print(*rows, sep="\n")
        else:
            PAGE.write_text(page(rows), encoding="utf-8")
