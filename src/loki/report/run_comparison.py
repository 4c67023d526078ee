"""The comparison that belongs into a run directory."""

from pathlib import Path

from loki.artefacts.model_card import write_damage
from loki.artefacts.run_layout import COMPARISON, RESTORED
from loki.evaluation.compare import compare
from loki.evaluation.options import MeasureOptions
from loki.evaluation.verdict import Limits
from loki.files import write_json
from loki.models.model_directory import ModelDirectory
from loki.report.comparison import comparison_file
from loki.report.page import write_report
from loki.report.run_directory import RunContents, read_comparison, read_run


def compare_run(run: RunContents, *, data: Path | None = None, overwrite: bool = False) -> None:
    """Compare the restored model of a run with its base on the general text, and keep that as `compare.json`.

    Nothing is done where base or restored model are missing, or the comparison is there already.

    Args:
        run: what `loki run` or `loki demo` left; gets the comparison.
        data: training data, for what was learned (default: `new-facts.jsonl` of a demo, if it is one).
        overwrite: compare again.
    """
    restored, demo_data = run.path / RESTORED, run.path / "new-facts.jsonl"
    if not run.base_model or not restored.is_dir() or (run.comparison and not overwrite):
        return
    is_demo = demo_data.is_file()  # its tokenizer knows the words of the tiny world only
    options = MeasureOptions(
        texts=None if is_demo else (),
        data=data or (demo_data if is_demo else None),
        trust_remote_code=run.base_model.trust_remote_code,
    )
    found = compare(run.base_model, [str(restored)], options, Limits(), positions=run.positions)
    values = comparison_file(found)
    write_damage(restored, [reason.partition(": ")[2] for reason in values["reasons"]])
    write_json(run.path / COMPARISON, values, overwrite=True)
    read_comparison(run)


def report_on(run_directory: Path, *, base: ModelDirectory | None = None, data: Path | None = None) -> Path:
    """Compare the models of a run and write its report, in place of older ones: the end of `loki run` and `loki demo`.

    Args:
        run_directory: of the run.
        base: its base model, where that has been looked up already.
        data: training data, for what was learned.

    Returns:
        The page.
    """
    run = read_run(run_directory, base)
    compare_run(run, data=data, overwrite=True)
    return write_report(run, overwrite=True)
