"""Every block of the pages runs as it is typed, in order, on small models; or the page says what it needs."""

from collections import Counter
from pathlib import Path

import pytest

from tests.cli.running import Shell, shell
from tests.docs.hub import offer_mmlu, use_cache
from tests.docs.pages import PAGES, ROOT, Block, blocks, prose
from tests.docs.typing_in import Typist

__all__ = ["shell"]
RUN = ("bash", "console", "python")
# What is shown, or written to the file in the title.
SHOWN = ("text", "json")
# Blocks that no test runs, by what they need. A new one is to be counted here.
NOT_RUN = {"another program": 8, "a GPU": 1, "a hub": 6}
FAST = {"docs/guides/adding-a-strategy.md", "docs/guides/adding-an-architecture.md"}
WITH_BLOCKS = [page for page in PAGES if any(block.needs is None and block.language in RUN for block in blocks(page))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offer_mmlu(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings whose length is found, and the search for a rate, take a few steps: what runs is the same."""
    monkeypatch.setattr("loki.implanting.training.planning.LEAST_STEPS", 4)
    monkeypatch.setattr("loki.implanting.training.rate_search._STEPS", (1, 2))


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=name(page), marks=[] if name(page) in FAST else pytest.mark.slow) for page in WITH_BLOCKS],
)
def test_a_page_runs_as_typed(
    page: Path, shell: Shell, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOKI_CACHE", str(tmp_path / "cache"))
    use_cache(monkeypatch, cache)
    typist = Typist(shell, cache)
    for block in blocks(page):
        if block.needs is None and (block.language in RUN or block.title is not None):
            try:
                typist.type_in(block)
            except BaseException as error:
                error.add_note(f"in the block at {block.place}")
                raise


def test_every_block_is_run_shown_or_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert len(found) > 60
    assert [block.place for block in found if block.language not in (*RUN, *SHOWN)] == []
    left_out = [block for block in found if block.needs is not None]
    with capsys.disabled():
        print("\n" + "\n".join(f"not run: {block.place} needs {block.needs} ({block.reason})" for block in left_out))
    assert Counter(block.needs for block in left_out) == NOT_RUN
    assert all(block.language == "bash" for block in left_out)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_comment_that_leaves_a_block_out_stands_directly_above_it(page: Path) -> None:
    assert "<!-- not run" not in prose(page)
    assert "```" not in prose(page)


def test_shown_blocks_hold_no_command() -> None:
    shown: list[Block] = [block for page in PAGES for block in blocks(page) if block.language in SHOWN]
    assert [
        block.place for block in shown if any(line.startswith(("$ ", "loki ")) for line in block.text.splitlines())
    ] == []
