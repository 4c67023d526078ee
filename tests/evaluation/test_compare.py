"""Comparing models and results: numbers against the metrics themselves, and every refusal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from loki.errors import LokiError
from loki.evaluation.compare import Comparison, compare
from loki.evaluation.measure import evaluate, save_result
from loki.evaluation.options import MeasureOptions
from loki.evaluation.subjects import find_subject
from loki.evaluation.verdict import Limits, Outcome
from loki.implanting.create import create_loki_model
from loki.metrics.text import text_divergence
from loki.metrics.texts import GENERAL, general_text
from loki.models.loading import load_model, load_tokenizer
from loki.report.comparison import verified_text
from tests.evaluation.models import (
    MARKS_AFTER,
    MARKS_BEFORE,
    harness_results,
    save_changed,
    save_loki_adapter,
    save_lora,
    save_with_another_tokenizer,
)

DOWN = "model.layers.1.mlp.down_proj.weight"


def compared(base: Any, new: Any, **options: Any) -> Comparison:
    [found] = compare(str(base), [str(new)], MeasureOptions(**options), Limits())
    return found


def test_a_model_and_itself(llama_dir: Path) -> None:
    found = compared(llama_dir, llama_dir)
    assert found.identical
    assert found.texts[0].kl is not None
    assert (found.texts[0].kl.kl, found.texts[0].kl.interval.high) == (0, 0)
    assert found.verdict.outcome is Outcome.PASS


def test_a_damaged_layer_fails(llama_dir: Path, tmp_path: Path) -> None:
    damaged = save_changed(llama_dir, tmp_path / "damaged", DOWN, 1.0)
    found = compared(llama_dir, damaged)
    direct = text_divergence(
        load_model(llama_dir), load_model(damaged), load_tokenizer(llama_dir), general_text().texts
    )
    text = found.texts[0]
    assert text.kl is not None
    assert (text.name, text.base, text.new) == (GENERAL, direct.base.loss, direct.new.loss)
    assert text.kl.kl == direct.kl_per_token > 0.1
    assert text.kl.interval.low < text.kl.kl < text.kl.interval.high
    assert text.interval.low < direct.new.loss - direct.base.loss < text.interval.high
    assert found.verdict.outcome is Outcome.FAIL


def test_an_adapter_is_its_base_and_what_it_adds(llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_lora(llama_dir, tmp_path / "lora")
    found = compared(llama_dir, adapter)
    from peft import PeftModel

    merged = PeftModel.from_pretrained(load_model(llama_dir), adapter).merge_and_unload()
    direct = text_divergence(load_model(llama_dir), merged, load_tokenizer(llama_dir), general_text().texts)
    assert found.texts[0].new == pytest.approx(direct.new.loss, rel=1e-5)
    assert found.texts[0].kl is not None
    assert found.texts[0].kl.kl == pytest.approx(direct.kl_per_token, rel=1e-3)
    assert not found.identical


def test_a_loki_model_says_whether_nothing_else_differs(llama_dir: Path, tmp_path: Path) -> None:
    positions = tmp_path / "positions.json"
    positions.write_text("[[0, 1], [2], []]")
    loki = create_loki_model(model_name=llama_dir, target_pos_path=positions, save_dir=tmp_path / "loki")
    changed = save_changed(Path(loki), tmp_path / "changed", DOWN, 0.001)
    found = compared(llama_dir, loki).verified
    assert found is not None
    assert (found.changed_rows, found.selected_rows, found.differences) == (0, 3, [])
    elsewhere = compared(llama_dir, changed).verified
    assert elsewhere is not None
    assert [difference.tensor for difference in elsewhere.differences] == [DOWN]
    assert compared(llama_dir, save_changed(llama_dir, tmp_path / "c", DOWN, 0.001)).verified is None


def test_the_restored_model_of_a_run_has_its_rows_beside_it(llama_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    restored = save_changed(llama_dir, run / "restored", DOWN, 0.001)
    (run / "positions.json").write_text(json.dumps([[], list(range(32)), []]))
    assert compared(llama_dir, restored).verified is None, "no run: the file may be of anything"
    (run / "run.json").write_text("{}")
    found = compared(llama_dir, restored).verified
    assert found is not None
    assert (found.changed_rows, found.differences) == (32, [])


def test_a_loki_adapter_is_verified_by_what_it_stands_on(llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_loki_adapter(llama_dir, tmp_path / "adapter")
    found = compared(llama_dir, adapter)
    assert verified_text(found) == "yes: LoKI adapter of 7 rows"
    other = save_changed(llama_dir, tmp_path / "other", "model.embed_tokens.weight", 0.001)
    assert verified_text(compared(other, adapter)) == "NO: 1 tensors differ elsewhere"


def test_rows_say_nothing_of_another_adapter(llama_dir: Path, tmp_path: Path) -> None:
    lora = save_lora(llama_dir, tmp_path / "lora")
    [found] = compare(str(llama_dir), [str(lora)], MeasureOptions(), Limits(), positions=[[0], [1], [2]])
    assert verified_text(found) == "rows not known"


def test_other_tokenizers_are_compared_by_bytes(llama_dir: Path, tmp_path: Path) -> None:
    found = compared(llama_dir, save_with_another_tokenizer(tmp_path / "other"))
    text = found.texts[0]
    assert text.per_byte
    assert text.kl is None
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    result = evaluate(find_subject(llama_dir), MeasureOptions())
    assert text.base == pytest.approx(result.texts[GENERAL].loss_per_byte)


def test_a_result_stands_for_its_model(llama_dir: Path, tmp_path: Path) -> None:
    changed = save_changed(llama_dir, tmp_path / "changed", DOWN, 0.5)
    save_result(tmp_path / "before.json", evaluate(find_subject(llama_dir), MeasureOptions()))
    from_file, from_model = compared(tmp_path / "before.json", changed), compared(llama_dir, changed)
    assert (from_file.texts[0].base, from_file.texts[0].new) == (from_model.texts[0].base, from_model.texts[0].new)
    assert from_file.texts[0].interval == from_model.texts[0].interval
    assert from_file.texts[0].kl is None


def test_training_data_before_and_after(llama_dir: Path, qwen2_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    records = [{"prompt": f"What is {number}? ", "completion": str(number * 7)} for number in range(8)]
    data.write_text("\n".join(map(json.dumps, records)))
    found = compared(llama_dir, qwen2_dir, data=data).data
    assert found is not None
    assert found.right.items == 8
    assert found.right.base == found.right.new == 0
    assert found.interval.low < found.new_loss - found.base_loss < found.interval.high
    save_result(tmp_path / "before.json", evaluate(find_subject(llama_dir), MeasureOptions(data=data)))
    assert compared(tmp_path / "before.json", qwen2_dir, data=data).data == found


def test_data_need_not_be_one_file(llama_dir: Path, qwen2_dir: Path, tmp_path: Path) -> None:
    records = [{"prompt": f"{number} + 1 =", "completion": f" {number + 1}"} for number in range(3)]
    Dataset.from_list(records).save_to_disk(tmp_path / "examples")
    found = compared(llama_dir, qwen2_dir, data=tmp_path / "examples").data
    assert found is not None
    assert found.right.items == 3


def write_results(path: Path, marks: list[int], **changes: Any) -> Path:
    path.write_text(json.dumps(harness_results(marks, **changes)))
    return path


def test_results_are_paired_item_by_item(tmp_path: Path) -> None:
    before = write_results(tmp_path / "a.json", MARKS_BEFORE)
    after = write_results(tmp_path / "b.json", MARKS_AFTER)
    found = compared(before, after)
    [task] = found.tasks
    assert (task.base, task.new, task.items) == (0.6, 0.6, 50)
    assert task.flips is not None
    assert (task.flips.lost, task.flips.gained) == (list(range(24, 30)), list(range(44, 50)))
    assert task.flips.p_value == 1
    assert task.pair.before.chance == 0.25
    assert found.forgetting is not None
    assert found.forgetting.percent == pytest.approx(0)
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    assert "items per task would settle it" in found.verdict.reasons[0]


def test_lost_items_fail(tmp_path: Path) -> None:
    before = write_results(tmp_path / "a.json", [1] * 45 + [0] * 5)
    after = write_results(tmp_path / "b.json", [1] * 25 + [0] * 25)
    found = compared(before, after)
    assert found.forgetting is not None
    assert found.forgetting.percent == pytest.approx(100 * 20 / 45)
    assert found.verdict.outcome is Outcome.FAIL


def test_items_in_another_order_are_the_same_items(tmp_path: Path) -> None:
    results = harness_results(MARKS_AFTER)
    results["samples"]["quiz"].reverse()
    (tmp_path / "b.json").write_text(json.dumps(results))
    [task] = compared(write_results(tmp_path / "a.json", MARKS_BEFORE), tmp_path / "b.json").tasks
    assert np.array_equal(task.pair.after.scores, MARKS_AFTER)


def test_files_of_the_harness_are_read(tmp_path: Path) -> None:
    """A directory as `lm_eval --output_path DIR --log_samples` leaves it."""
    folder = tmp_path / "out" / "some__model"
    folder.mkdir(parents=True)
    results = harness_results(MARKS_AFTER)
    samples = results.pop("samples")["quiz"]
    for sample in samples:  # as the harness writes them
        sample["arguments"] = {
            f"gen_args_{index}": {"arg_0": prompt, "arg_1": choice}
            for index, (prompt, choice) in enumerate(sample["arguments"])
        }
    (folder / "results_2026-01-02T03-04-05.678.json").write_text(json.dumps(results))
    (folder / "samples_quiz_2026-01-02T03-04-05.678.jsonl").write_text("\n".join(map(json.dumps, samples)))
    before = write_results(tmp_path / "a.json", MARKS_BEFORE)
    [task] = compared(before, tmp_path / "out").tasks
    assert np.array_equal(task.pair.after.scores, MARKS_AFTER)
    assert task.pair.at(0)[1].prompt == "Question 0?"
    (folder / "samples_quiz_2026-01-02T03-04-05.678.jsonl").unlink()
    with pytest.raises(LokiError, match=r"no samples .*quiz"):
        compared(before, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n-shot": {"quiz": 5}}, "few-shot .* 0 .* 5 "),
        ({"versions": {"quiz": 2.0}}, r"version .*'1\.0' .*'2\.0'"),
        ({"chat_template_sha": "abcdef0123"}, "chat template abcdef01"),
        ({"samples": {"other": harness_results(MARKS_BEFORE)["samples"]["quiz"]}}, "task other"),
        ({"samples": {"quiz": harness_results(MARKS_BEFORE)["samples"]["quiz"][:40]}}, "50 items .* 40"),
    ],
)
def test_results_made_in_different_ways_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    before = write_results(tmp_path / "a.json", MARKS_BEFORE)
    with pytest.raises(LokiError, match=message):
        compared(before, write_results(tmp_path / "b.json", MARKS_BEFORE, **changes))


def test_different_metrics_are_refused(tmp_path: Path) -> None:
    results = harness_results(MARKS_BEFORE)
    for sample in results["samples"]["quiz"]:
        sample["metrics"] = ["acc_norm"]
    (tmp_path / "b.json").write_text(json.dumps(results))
    with pytest.raises(LokiError, match=r"metric .*'acc,none' .*'acc_norm,none'"):
        compared(write_results(tmp_path / "a.json", MARKS_BEFORE), tmp_path / "b.json")


def test_other_bad_input(llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(LokiError, match=r"nothing\.txt does not exist"):
        compared(llama_dir, llama_dir, texts=(tmp_path / "nothing.txt",))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(LokiError, match=r"empty\.txt is empty"):
        compared(llama_dir, llama_dir, texts=(tmp_path / "empty.txt",))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"words": "b"}')
    with pytest.raises(LokiError, match='line 2 has no "text"'):
        compared(llama_dir, llama_dir, texts=(tmp_path / "bad.jsonl",))
    (tmp_path / "not.json").write_text("{}")
    with pytest.raises(LokiError, match="no results"):
        compared(llama_dir, tmp_path / "not.json")
    prompt = tmp_path / "prompt"
    prompt.mkdir()
    (prompt / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}')
    (prompt / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(LokiError, match="PROMPT_TUNING"):
        compared(llama_dir, prompt)
