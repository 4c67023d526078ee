"""What the documentation says can be done: commands, options, imports and links exist."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loki.cli.global_options import take_global_options
from loki.cli.main import COMMANDS
from tests.docs.pages import PAGES, ROOT, anchors, commands, inline_code, links, prose, python_blocks, words

SOURCE = ROOT / "src"
HOOK = importlib.util.spec_from_file_location("cli_reference", ROOT / "docs" / "cli_reference.py")
assert HOOK is not None and HOOK.loader is not None
CLI_REFERENCE = importlib.util.module_from_spec(HOOK)
HOOK.loader.exec_module(CLI_REFERENCE)
GROUP = CLI_REFERENCE.command_group()
# Options that are named in the text and belong to other programs.
OF_OTHERS = {"--multi_gpu", "--num_processes", "--log_samples"}
OF_EVERY = {"--debug", "--quiet", "--json", "--log-file", "--version", "--help", "--install-completion"}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "merge-adapters" in (tmp_path / "site" / "reference" / "cli.html").read_text()
    assert "LoKIConfig" in (tmp_path / "site" / "reference" / "python.html").read_text()


def test_the_reference_has_every_command_with_every_option() -> None:
    sections = dict(
        re.findall(r"^## loki (\S+)\n(.*?)(?=^## |\Z)", CLI_REFERENCE.reference(), flags=re.MULTILINE | re.DOTALL)
    )
    assert {name.replace("-", "_") for name in sections} == set(COMMANDS)
    for name, section in sections.items():
        assert options(GROUP.commands[name]) <= set(re.findall(r"`(--[\w-]+)`", section)), name
    assert re.search(r"`--seed` INTEGER \|.*\| `0` \|", sections["select"])
    assert re.search(r"`--quota` NUMBER \|.*\| required \|", sections["select"])


def test_documented_commands_are_understood() -> None:
    assert len(commands()) > 50
    wrong = {}
    for command in commands():
        own, common = take_global_options(words(command.text))
        if not (common.version or "--help" in own) and (problem := misunderstood(own)):
            wrong[f"{command.place}: {command.text}"] = problem
    assert not wrong


def test_commands_and_options_in_the_text_exist() -> None:
    wrong = []
    for code in inline_code():
        first, *rest = code.text.split()
        if first == "loki" and rest and rest[0] != "COMMAND":
            own = {rest[0]} if not rest[0].startswith("-") else set()
            allowed = OF_EVERY.union(*(options(GROUP.commands[name]) for name in own & GROUP.commands.keys()))
        elif first.startswith("--"):
            own, allowed = set(), OF_OTHERS | OF_EVERY.union(*map(options, GROUP.commands.values()))
        else:
            continue
        if own - GROUP.commands.keys() or set(re.findall(r"(?<!\S)(--[a-z][\w-]*)", code.text)) - allowed:
            wrong.append(f"{code.place}: {code.text}")
    assert not wrong


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.place)
def test_python_blocks_compile_and_what_they_import_is_there(block: Any) -> None:
    tree = ast.parse(block.text, filename=block.place)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(module_file(alias.name) for alias in node.names if is_own(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and is_own(node.module):
            missing = {alias.name for alias in node.names} - names_of(node.module)
            assert {name for name in missing if not module_file(f"{node.module}.{name}")} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_and_sections_exist(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_messages_under_troubleshooting_are_those_of_the_source() -> None:
    headings = re.findall(r"^### `(.+)`$", prose(ROOT / "docs" / "troubleshooting.md"), flags=re.MULTILINE)
    assert len(headings) >= 25
    said = texts_of_the_source()
    parts = {part.strip() for heading in headings for part in heading.split("…")}
    assert {part for part in parts if part and part not in said} == set()


def options(command: Any) -> set[str]:
    return {
        name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts) if "--" in name
    }


def misunderstood(arguments: list[str]) -> str:
    """What a command would say of its arguments before it does anything; empty if it takes them."""
    name, *rest = arguments
    if name not in GROUP.commands:
        return f"there is no command {name}"
    try:
        GROUP.commands[name].make_context(name, rest)
    except Exception as error:  # Click's own, which Typer may bring along
        return getattr(error, "message", "") or repr(error)
    return ""


def is_own(module: str) -> bool:
    return module.partition(".")[0] == "loki"


def module_file(module: str) -> Path | None:
    path = SOURCE.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def names_of(module: str) -> set[str]:
    """What a module defines or imports, at its top or under a condition there."""
    file = module_file(module)
    assert file is not None, module
    found: set[str] = set()
    nodes: list[ast.stmt] = list(ast.parse(file.read_text(encoding="utf-8")).body)
    for node in nodes:
        if isinstance(node, ast.If):
            nodes += node.body
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def texts_of_the_source() -> str:
    """All texts in the code, without the values that are put into them."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in sorted(SOURCE.rglob("*.py")))
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join(" ".join(text.replace("`", "").split()) for text in texts if isinstance(text, str))
