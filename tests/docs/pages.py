"""The pages of the documentation, and what stands in them."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"^(?:<!-- not run, needs (?P<needs>[^:\n]+): (?P<reason>[^\n]+?) -->\n)?"
    r'```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?\n(?P<text>.*?)^```',
    flags=re.MULTILINE | re.DOTALL,
)
_SHELL = ("bash", "console")
LAUNCHED = re.compile(r"^accelerate launch (.*?) *-m (?=loki )")


@dataclass(frozen=True)
class Snippet:
    """A part of a page: its page and line, to find it, and its text."""

    place: str
    text: str


@dataclass(frozen=True)
class Block(Snippet):
    """A code block.

    Attributes:
        language: the word after the backticks.
        title: name of the file that it shows, if any.
        needs: what it needs that tests do not have, as the comment above it says; None if tests run it.
        reason: what else the comment says.
    """

    language: str
    title: str | None
    needs: str | None
    reason: str | None


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    text = page.read_text(encoding="utf-8")
    return tuple(
        Block(
            f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start('language')) + 1}",
            match["text"],
            match["language"],
            match["title"],
            match["needs"],
            match["reason"],
        )
        for match in _BLOCK.finditer(text)
    )


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def python_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == "python"]


def commands() -> list[Snippet]:
    """Every command line that begins with `loki`, without what was typed before it."""
    return [
        Snippet(block.place, command)
        for page in PAGES
        for block in blocks(page)
        if block.language in _SHELL
        for line in block.text.replace("\\\n", " ").splitlines()
        if (command := LAUNCHED.sub("", line.removeprefix("$ ").strip())).startswith("loki ")
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
