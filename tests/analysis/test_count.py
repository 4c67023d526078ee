import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loki.analysis.analyse import analyse
from loki.analysis.count import CountedSelections, count_selections
from loki.analysis.options import AnalysisOptions
from loki.analysis.selection_counts import CountingLog, SelectionCounts
from loki.analysis.work_folder import BatchResults, WorkFolder
from loki.artefacts.expert_scores import ExpertScores
from loki.artefacts.positions import Positions, default_positions_folder, read_positions
from loki.errors import LokiError
from loki.selection.select import select
from loki.selection.strategies import SelectionSettings, strategy_names
from loki.selection.strategy import By
from tests.analysis.analyst import split_options
from tests.analysis.calibration_files import write_prompts
from tests.analysis.fake_engine import HIDDEN, LAYERS, FakeAttributor, fake_attribution

COUNT = 157
QUOTAS = [10.0, 12.5, 50.0]


class Counter:
    """Counts over the same data with the same model again and again."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.data = folder / "prompts.jsonl"
        self.scores = folder / "scores.h5"
        self.output = folder / "positions"
        self.partial = folder / "positions.partial"
        self.prompts = write_prompts(self.data, COUNT)

    def __call__(self, quotas: list[float] | None = None, **changes: Any) -> CountedSelections:
        options, arguments = split_options({"batch_size": 2, **changes})
        return count_selections(self.model, str(self.data), self.output, quotas or QUOTAS, options=options, **arguments)

    def written(self) -> dict[float, Positions]:
        return {quota: read_positions(self.output / f"{quota:g}.json") for quota in QUOTAS}

    def expected(self, selection: SelectionSettings | None = None) -> dict[float, Positions]:
        """The same by way of a scores file."""
        if not self.scores.exists():
            analyse(self.model, str(self.data), self.scores, options=AnalysisOptions(batch_size=2))
        return {quota: select(self.scores, quota, selection) for quota in QUOTAS}


@pytest.fixture
def counter(llama_dir: Path, tmp_path: Path, engine: FakeAttributor) -> Counter:
    return Counter(llama_dir, tmp_path)


@pytest.mark.parametrize(
    ("strategy", "by"),
    [*((name, By.SIGNED) for name in strategy_names(counting=True)), ("layer_balanced", By.ABSOLUTE)],
)
def test_same_positions_as_by_way_of_a_scores_file(counter: Counter, strategy: str, by: By) -> None:
    counted = counter(selection=SelectionSettings(strategy, by))
    assert (counted.samples, counted.completeness) == (COUNT, 0.01)
    assert counted.paths == {quota: counter.output / f"{quota:g}.json" for quota in QUOTAS}
    assert counter.written() == counter.expected(SelectionSettings(strategy, by))
    assert not counter.partial.exists()
    assert sorted(path.name for path in counter.output.iterdir()) == ["10.json", "12.5.json", "50.json"]


@pytest.mark.parametrize("after", [0, 20, 65, 150])
def test_an_interrupted_run_continues(counter: Counter, engine: FakeAttributor, after: int) -> None:
    engine.error, engine.error_after = KeyboardInterrupt(), after
    with pytest.raises(KeyboardInterrupt):
        counter()
    engine.error = None
    counter()
    assert sorted(engine.prompts) == sorted(map(tuple, counter.prompts))  # nothing twice, nothing missing
    assert counter.written() == counter.expected()


def test_batches_do_not_pile_up(counter: Counter, engine: FakeAttributor) -> None:
    engine.error, engine.error_after = KeyboardInterrupt(), 150
    with pytest.raises(KeyboardInterrupt):
        counter()
    assert len(list((counter.partial / "batches").iterdir())) < 32  # of 78


def test_interrupted_while_writing_the_positions(
    counter: Counter, engine: FakeAttributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_one(path: Path, positions: Positions, **_: Any) -> None:
        path.parent.mkdir(exist_ok=True)
        if any(path.parent.iterdir()):
            raise KeyboardInterrupt
        path.write_text(json.dumps(positions))

    with monkeypatch.context() as patch:
        patch.setattr("loki.analysis.count.write_positions", write_one)
        with pytest.raises(KeyboardInterrupt):
            counter()
    counter()
    assert len(engine.prompts) == COUNT
    assert counter.written() == counter.expected()


def test_until_stable_stops_early_and_where_it_would_have_without_an_interruption(
    counter: Counter, engine: FakeAttributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loki.analysis.stability.overlap", lambda *_: 0.5)
    counter(until_stable=0.5)
    uninterrupted, computed = counter.written(), len(engine.prompts)
    assert 64 * 1.25**2 <= computed <= 64 * 1.25**2 + 8  # the second comparison of checkpoints a quarter apart
    engine.prompts.clear()
    for after in (60, 90):
        engine.error, engine.error_after = KeyboardInterrupt(), after
        with pytest.raises(KeyboardInterrupt):
            counter(until_stable=0.5, overwrite=True)
    engine.error = None
    counter(until_stable=0.5, overwrite=True)
    assert (counter.written(), len(engine.prompts)) == (uninterrupted, computed)


def test_continuing_with_other_settings_is_refused(counter: Counter, engine: FakeAttributor) -> None:
    engine.error, engine.error_after = KeyboardInterrupt(), 20
    with pytest.raises(KeyboardInterrupt):
        counter()
    with pytest.raises(LokiError, match=r"other settings .*quotas \[10.0, 12.5, 50.0\] and \[20.0\]"):
        counter([20.0])
    with pytest.raises(LokiError, match=r"strategy layer_balanced and global_lowest"):
        counter(selection=SelectionSettings("global_lowest"))
    with pytest.raises(LokiError, match=r"by signed and absolute"):
        counter(selection=SelectionSettings(by=By.ABSOLUTE))


def test_an_existing_file_is_kept_unless_it_may_be_replaced(counter: Counter, engine: FakeAttributor) -> None:
    counter.output.mkdir()
    (counter.output / "50.json").write_text("[[1]]")
    with pytest.raises(LokiError, match=r"50\.json .*exists"):
        counter()
    assert not engine.prompts
    assert (counter.output / "50.json").read_text() == "[[1]]"
    counter(overwrite=True)
    assert counter.written() == counter.expected()


@pytest.mark.parametrize(
    ("quotas", "changes", "problem"),
    [
        ([0.0], {}, r"quota 0\.0"),
        ([1.0], {}, r"smallest quota .* 3\.125"),
        ([10.0], {"selection": SelectionSettings("random")}, "strategy 'random'"),
        ([10.0], {"until_stable": 0.0}, r"--until-stable 0\.0"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    counter: Counter, quotas: list[float], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(LokiError, match=problem):
        counter(quotas, **changes)
    assert not counter.output.exists()
    assert not counter.partial.exists()


def test_a_file_is_no_folder(counter: Counter, engine: FakeAttributor) -> None:
    counter.output.write_text("mine")
    with pytest.raises(LokiError, match="is a file"):
        counter()
    assert not engine.prompts
    assert not counter.partial.exists()


def test_no_quota(counter: Counter) -> None:
    with pytest.raises(LokiError, match="no quota"):
        count_selections(counter.model, str(counter.data), counter.output, [])


def test_default_folder_is_the_published_one() -> None:
    assert default_positions_folder("Qwen/Qwen2.5-0.5B") == Path("kva_result/pos_json/Qwen2.5-0.5B")


def test_counts_of_several_processes_add_up_however_they_were_left(tmp_path: Path) -> None:
    """Counts and stored batches of three processes, killed at once, are taken over by one."""

    def results(number: int) -> BatchResults:
        scores = fake_attribution([number], 1).scores.numpy()[None]
        zeros = np.zeros(1)
        none = ExpertScores.none(HIDDEN)
        return BatchResults(np.array([number]), scores, zeros.astype(int), zeros, zeros, none)

    work = WorkFolder(tmp_path / "work")
    empty = SelectionCounts(SelectionSettings(), [25.0], LAYERS, HIDDEN)
    with work.hold():
        work.begin({}, overwrite=False)
        work.record({})
        for rank in range(3):
            log = CountingLog(work, empty.empty(), rank, keep_batches=False)
            for number in range(rank, 120, 3):
                work.write_batch(number, results(number))
                log.add(number, results(number))
        assert 0 < len(work.stored_batches()) < 120
        saved = {path.name: path.read_bytes() for path in work.counts.iterdir()}

        main = CountingLog(work, empty.empty(), 0, keep_batches=False)
        assert main.resume() == set(range(120))
        assert not work.stored_batches()
        for name, data in saved.items():  # killed before the files taken over were removed
            if name != "00000.npz":
                (work.counts / name).write_bytes(data)
        again = CountingLog(work, empty.empty(), 0, keep_batches=False)
        assert again.resume() == set(range(120))
        positions = again.total().positions()

    expected = empty.empty()
    expected.add(0, np.concatenate([results(number).scores for number in range(120)]))
    assert positions == expected.positions()


def test_a_batch_is_not_counted_twice() -> None:
    counts = SelectionCounts(SelectionSettings(), [25.0], LAYERS, HIDDEN)
    counts.add(3, np.zeros((1, LAYERS, HIDDEN), np.float32))
    with pytest.raises(LokiError, match=r"batches \[3\] .*twice"):
        counts.add(3, np.zeros((1, LAYERS, HIDDEN), np.float32))
