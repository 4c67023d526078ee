"""The files that hosting services read: what they name exists, and nothing in them may do more than it needs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAKE_TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_are_workflows_and_templates() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml"]
    assert len(TEMPLATES) >= 2


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_nothing_else(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    events = workflow[True]  # YAML 1.1 takes `on` for a truth value
    # These run with the secrets of the repository on what strangers send.
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(events)
    text = path.read_text()
    assert "secrets." not in text
    # Texts of events are anybody's, and would be run as part of a command.
    assert set(re.findall(r"\$\{\{ ?([\w.]+) ?\}\}", text)) <= {"github.workflow", "github.ref", "matrix.target"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        for step in job["steps"]:
            assert step.get("uses", "actions/").startswith("actions/")
            if "checkout" in step.get("uses", ""):
                assert step["with"] == {"persist-credentials": False}


def test_the_workflow_does_all_that_ci_does() -> None:
    targets = read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["target"]
    assert set(targets) <= MAKE_TARGETS
    assert set(re.findall(r"^make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_an_issue_template_is_one(path: Path) -> None:
    template = read(path)
    assert template["name"]
    assert template["description"]
    fields = [field for field in template["body"] if field["type"] != "markdown"]
    assert all(field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_the_citation_is_that_of_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year", "url"} <= paper.keys()
    assert paper["url"] in (ROOT / "README.md").read_text()


def test_hooks_before_a_commit_are_part_of_make_lint() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"  # nothing is fetched and run that the project does not have anyway
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert lint is not None
    programs = {" ".join(hook["entry"].removeprefix("uv run ").split()[:2]) for hook in local["hooks"]}
    assert programs == {"ruff check", "ruff format", "mypy"}
    assert all(program in lint[1] for program in programs)
