"""Imports point down only, in the order of the table in CONTRIBUTING.md, and never in a circle.

Imports inside functions and those for type checkers count as well: a reader follows them all the same.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import loki

SOURCE = Path(loki.__file__).parent
CONTRIBUTING = SOURCE.parents[1] / "CONTRIBUTING.md"
MODULES = {
    ".".join(("loki", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in SOURCE.rglob("*.py")
}


def layers() -> dict[str, int]:
    """Height of every folder and file right below `src/loki`; the package itself, which imports lazily, is on top."""
    table = CONTRIBUTING.read_text().partition("| layer |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)[^`]*`", line.split("|")[1]) for line in table.splitlines()[2:]]
    heights = {name: height for height, names in enumerate(rows) for name in names}
    return {**heights, "loki": len(rows), "__main__": len(rows)}


def imported_by(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}:{node.lineno}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return found & MODULES.keys()


def test_the_table_is_complete() -> None:
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or list(path.glob("*.py"))}
    assert there - {"__init__"} == layers().keys() - {"loki"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    heights = layers()
    height = {name: heights[name.removeprefix("loki.").partition(".")[0]] for name in MODULES}
    assert {name for name in imported_by(module) if height[name] > height[module]} == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    try:
        TopologicalSorter({module: imported_by(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))
