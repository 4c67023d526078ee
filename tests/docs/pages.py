"""The pages of the documentation, and what stands in them."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
_SHELL = ("", "console", "bash")
_LAUNCHED = re.compile(r"^accelerate launch .*? -m (?=loki )")


@dataclass(frozen=True)
class Snippet:
    """A part of a page: its page and line, to find it, and its text."""

    place: str
    text: str


def blocks(page: Path, *languages: str) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    found = [match for match in _BLOCK.finditer(text) if match[1] in languages]
    return [
        Snippet(f"{page.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}", match[2]) for match in found
    ]


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def python_blocks() -> list[Snippet]:
    return [block for page in PAGES for block in blocks(page, "python")]


def commands() -> list[Snippet]:
    """Every command line that begins with `loki`, without what was typed before it."""
    return [
        Snippet(block.place, command)
        for page in PAGES
        for block in blocks(page, *_SHELL)
        for line in block.text.replace("\\\n", " ").splitlines()
        if (command := _LAUNCHED.sub("", line.removeprefix("$ ").strip())).startswith("loki ")
    ]


def inline_code() -> list[Snippet]:
    return [
        Snippet(str(page.relative_to(ROOT)), " ".join(code.split()))
        for page in PAGES
        for code in re.findall(r"`([^`]+)`", prose(page))
    ]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)[1:]


def links(page: Path) -> list[str]:
    """What a page links to, but for other sites; a part of a page as well."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@cache
def anchors(page: Path) -> frozenset[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return frozenset(re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings)
