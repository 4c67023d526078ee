import json
from pathlib import Path

from loki.demo.compare import comparison_table
from loki.demo.outcome import Outcome
from loki.demo.reporting import save_comparison
from loki.demo.world import NEW_PEOPLE, OLD_FAMILIES


def test_comparison_is_saved_with_every_run(tmp_path: Path) -> None:
    before = dict.fromkeys(OLD_FAMILIES, 1.0) | {NEW_PEOPLE: 0.0}
    after = before | {NEW_PEOPLE: 1.0}
    runs = [
        Outcome("LoKI", 1e-3, seed, 10, 100, before, after | {"people": people})
        for seed, people in enumerate([0.9, 0.8])
    ]
    table = save_comparison(tmp_path, runs, 0.99)
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert [run["forgetting_percent"] for run in saved] == [run.forgetting for run in runs]
    assert [run["after"] for run in saved] == [run.after for run in runs]
    assert (tmp_path / "comparison.md").read_text() == table.markdown() == comparison_table(runs, 0.99).markdown()
