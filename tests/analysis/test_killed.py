"""Analyses killed at random moments, and shared between processes: programs of their own, hence slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from loki.analysis.batches import processing_order
from loki.artefacts.positions import read_positions
from tests.analysis.calibration_files import write_prompts
from tests.programs import ROOT, run_python, run_together
from tests.tiny_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

BAD_TOKEN = 10  # not among those of the engine's own prompt


@pytest.mark.parametrize(
    ("definition", "samples", "quota"),
    [
        ("captum", 1500, ()),
        ("captum", 60, ()),
        ("captum", 1500, (20,)),
        ("captum", 60, (20,)),
        ("sensitivity", 600, ()),
    ],
    ids=["long", "short", "long, no log", "short, no log", "sensitivity"],
)
def test_killed_at_random_moments(
    llama_dir: Path, tmp_path: Path, definition: str, samples: int, quota: tuple[int, ...]
) -> None:
    """The long run is killed many times on its way; the short ones at every stage from start to clearing up."""
    write_prompts(tmp_path / "prompts.jsonl", samples)
    words = (llama_dir, tmp_path / "prompts.jsonl", tmp_path, 20, 0.6, 0, definition, *quota)
    assert int(run_python("-m", "tests.analysis.killing", *words).stdout.split()[0]) == 20


@pytest.mark.parametrize("definition", ["captum", "sensitivity"])
def test_two_processes_give_what_one_gives(llama_dir: Path, tmp_path: Path, definition: str) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 45)
    data = ("--data", tmp_path / "prompts.jsonl", "--batch-size", 4)
    words = ("-m", "loki", "analyse", llama_dir, *data, "--definition", definition)
    check = ("--check", 3) if definition == "captum" else ()
    run_python(*words, "--output", tmp_path / "one.h5")
    shared = run_together(2, *words, "--output", tmp_path / "two.h5", *check)
    assert ["45 samples analysed" in process.stdout for process in shared] == [True, False]
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "two.h5") as two:
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name][:], two[name][:])
        assert dict(one.attrs) == dict(two.attrs)
    assert not (tmp_path / "two.h5.partial").exists()

    run_python("-m", "loki", "select", tmp_path / "one.h5", "--quota", 25, "--output", tmp_path / "selected.json")
    run_together(2, *words, "--output", tmp_path / "counted", "--no-log", "--quota", 25)
    assert read_positions(tmp_path / "counted" / "25.json") == read_positions(tmp_path / "selected.json")


def test_three_processes_stop_early_where_one_does(llama_dir: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 300)
    data = ("--data", tmp_path / "prompts.jsonl", "--batch-size", 4)
    words = ("-m", "loki", "analyse", llama_dir, *data, "--until-stable", 0.6, "--quota", "10,30")
    run_python(*words, "--output", tmp_path / "one.h5")
    run_together(3, *words, "--output", tmp_path / "three.h5")
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "three.h5") as three:
        assert 64 < len(one["dataset"]) < 300
        np.testing.assert_array_equal(three["dataset"][:], one["dataset"][:])
        assert dict(three.attrs) == dict(one.attrs)


def test_bad_input_in_two_processes_is_one_line(llama_dir: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 5)
    (tmp_path / "scores.h5").write_text("mine")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "loki", "analyse"]
    words = [llama_dir, "--data", tmp_path / "prompts.jsonl", "--output", tmp_path / "scores.h5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("error:") == 1
    assert (tmp_path / "scores.h5").read_text() == "mine"


@pytest.mark.parametrize(("rank", "mode"), [(0, []), (1, []), (1, ["--no-log", "--until-stable", 0.9])])
def test_a_sample_that_fails_in_either_process_is_one_line(tmp_path: Path, rank: int, mode: list[object]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[BAD_TOKEN] = torch.nan
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    prompts = [[20 + number, 30] for number in range(6)]
    prompts[processing_order(6, 0)[rank + 2]].append(BAD_TOKEN)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in prompts))
    options = ("--data", tmp_path / "prompts.jsonl", "--output", tmp_path / "out", "--batch-size", 1, *mode)
    said = [done.stderr for done in run_together(2, "-m", "loki", "analyse", tmp_path / "model", *options, code=2)]
    assert [text.count("error:") for text in said] == [1, 0]
    assert "a score is NaN or infinite" in said[0]
    assert not any("Traceback" in text for text in said)


@pytest.mark.parametrize("script", ["analyse_mmlu_llama.py", "analyse_mmlu_qwen2.py"])
def test_published_scripts(script: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model: Path = request.getfixturevalue("llama_dir" if "llama" in script else "qwen2_dir")
    copy = tmp_path / "mmlu"
    copy.mkdir()
    rows = [f'"What is {number}?",a,b,c,d,A' for number in range(5)]
    (copy / "anatomy_test.csv").write_text("\n".join(rows) + "\n")
    words = ("--model_path", model, "--output_dir", tmp_path / "out", "--result_file", "kva.h5", "--data", copy)
    launcher = ("-m", "accelerate.commands.launch", "--mixed_precision", "bf16")
    run_python(*launcher, script, *words, "--write_mode", "w", "--steps", 5)
    with h5py.File(tmp_path / "out" / "kva.h5") as file:
        assert file["dataset"].shape == (5, 3, 32)
        assert (file.attrs["dtype"], file.attrs["steps"]) == ("bfloat16", 5)
