"""`loki analyse`, `loki merge` and `loki inspect` with a real model."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from loki.artefacts.positions import read_positions
from loki.kva.attributor import NotExactError
from loki.kva.fast.engine import FastAttributor
from tests.analysis.calibration_files import write_prompts
from tests.artefacts.scores_files import write_scores
from tests.cli.running import Shell
from tests.tiny_models import save_tiny_model


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "prompts.jsonl", 12)
    return Path("prompts.jsonl")


def test_default_output_is_where_the_published_project_puts_it(shell: Shell, llama_dir: Path, data: Path) -> None:
    outcome = shell.done("analyse", llama_dir, "--data", data)
    path = Path("kva_result/hdf5/tiny-llama/kva_mmlu.h5")
    assert outcome.out == f"12 samples analysed: {path}\n"
    with h5py.File(path) as file:
        assert file["dataset"].shape == (12, 3, 32)


def test_a_model_spread_over_devices_gives_the_same_scores(shell: Shell, llama_dir: Path, data: Path) -> None:
    shell.done("analyse", llama_dir, "--data", data, "--output", "one.h5")
    shell.done("analyse", llama_dir, "--data", data, "--output", "spread.h5", "--device-map", "auto")
    with h5py.File("one.h5") as one, h5py.File("spread.h5") as spread:
        np.testing.assert_array_equal(spread["dataset"][:], one["dataset"][:])


def test_every_setting_reaches_the_file(shell: Shell, llama_dir: Path, data: Path) -> None:
    shell.done(
        *("analyse", llama_dir, "--data", data, "--output", "scores.h5", "--definition", "paper", "--steps", 5),
        *("--ig-method", "gausslegendre", "--engine", "captum", "--quantity", "logit", "--absolute", "--position", -2),
        *("--subjects", "maths", "--samples-per-subject", 3, "--seed", 1, "--batch-size", 2, "--dtype", "bfloat16"),
        *("--device", "cpu", "--memory-budget", "1GiB"),
    )
    with h5py.File("scores.h5") as file:
        expected = {
            "definition": "paper",
            "steps": 5,
            "ig_method": "gausslegendre",
            "engine": "captum",
            "quantity": "logit",
            "absolute": True,
            "position": -2,
            "dtype": "bfloat16",
            "samples_done": 3,
        }
        assert {name: file.attrs[name] for name in expected} == expected
        assert set(file["subjects"].asstr()[:]) == {"maths"}
        assert (file["dataset"][:] >= 0).all()


@pytest.mark.parametrize("tokens", ["sampled", "empirical"])
def test_sensitivity_of_general_text(shell: Shell, llama_dir: Path, data: Path, tokens: str) -> None:
    Path("general.txt").write_text("All happy families are alike. " * 40)
    words = ("analyse", llama_dir, "--data", "general.txt", "--definition", "sensitivity", "--sensitivity", tokens)
    shell.done(*words, "--output", "scores.h5", "--batch-size", 2, "--seed", 3)
    shell.done(*words, "--output", "again.h5", "--batch-size", 2, "--seed", 3)
    drawn = ", seed 3" if tokens == "sampled" else ""
    with h5py.File("scores.h5") as file, h5py.File("again.h5") as again:
        assert file["dataset"].shape == (5, 3, 32)  # 1200 characters in pieces of at most 256
        assert (file["dataset"][:] > 0).all()
        np.testing.assert_array_equal(file["dataset"][:], again["dataset"][:])
        assert {name: file.attrs[name] for name in ("definition", "steps", "ig_method", "quantity")} == {
            "definition": "sensitivity",
            "steps": 0,
            "ig_method": "",
            "quantity": f"log-probability of {tokens} tokens{drawn}",
        }
    other = "empirical" if tokens == "sampled" else "sampled"
    refused = shell(*words[:-1], other, "--output", "scores.h5")
    assert refused.code == 2 and "quantity log-probability of" in refused.err
    shell.done(*words, "--batch-size", 2, "--seed", 3, "--no-log", "--quota", 25, "--output", "counted")
    shell.done("select", "scores.h5", "--quota", 25, "--output", "selected.json")
    assert read_positions(Path("counted/25.json")) == read_positions(Path("selected.json"))
    assert "sensitivity" in shell.done("inspect", "scores.h5").out


def test_sensitivity_and_what_does_not_belong_to_it(shell: Shell, llama_dir: Path, data: Path) -> None:
    words = ("analyse", llama_dir, "--data", data, "--output", "scores.h5")
    for own, problem in {
        ("--check", 1): "--check compares with Captum",
        ("--absolute",): "--absolute True belongs to attribution",
        ("--steps", 9): "--steps 9 belongs to attribution",
    }.items():
        refused = shell(*words, "--definition", "sensitivity", *own)
        assert refused.code == 2 and problem in refused.err
    assert shell(*words, "--sensitivity", "empirical").code == 2
    assert "--sensitivity none is not known: use sampled, empirical" in shell(*words, "--sensitivity", "none").err
    assert not Path("scores.h5").exists()


def test_no_log_writes_what_select_would(shell: Shell, llama_dir: Path, data: Path) -> None:
    shell.done("analyse", llama_dir, "--data", data, "--output", "scores.h5")
    outcome = shell.done("analyse", llama_dir, "--data", data, "--no-log", "--quota", "12.5,50")
    for quota in ("12.5", "50"):
        counted = Path(f"kva_result/pos_json/tiny-llama/{quota}.json")
        assert str(counted) in outcome.out
        shell.done("select", "scores.h5", "--quota", quota, "--output", f"{quota}.json")
        assert read_positions(counted) == read_positions(Path(f"{quota}.json"))


def test_interrupted_and_continued(shell: Shell, llama_dir: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("analyse", llama_dir, "--data", data, "--output", "scores.h5", "--batch-size", 2)
    shell.done(*words[:4], "--output", "undisturbed.h5", "--batch-size", 2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("loki.analysis.assemble.replace_durably", interrupt)
        interrupted = shell(*words)
    assert interrupted.code == 130
    assert "run the same command again to continue" in interrupted.err
    refused = shell(*words, "--steps", 9)
    assert refused.code == 2
    assert "steps 7 and 9" in refused.err
    shell.done(*words)
    with h5py.File("scores.h5") as file, h5py.File("undisturbed.h5") as undisturbed:
        np.testing.assert_array_equal(file["dataset"][:], undisturbed["dataset"][:])
    assert not Path("scores.h5.partial").exists()


def test_write_mode_a_adds(shell: Shell, llama_dir: Path, data: Path) -> None:
    shell.done("analyse", llama_dir, "--data", data, "--output", "scores.h5", "--subjects", "maths")
    refused = shell("analyse", llama_dir, "--data", data, "--output", "scores.h5")
    assert refused.code == 2
    assert "--write-mode a" in refused.err
    done = shell.done("analyse", llama_dir, "--data", data, "--output", "scores.h5", "--write-mode", "a")
    assert done.out.startswith("12 samples")


def test_a_model_for_captum_is_one_line_and_survives_an_interruption(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fast engine refuses on some batches only does not depend on where a run stopped."""
    model = save_tiny_model(tmp_path / "model")
    write_prompts(tmp_path / "prompts.jsonl", 12)
    words = ("analyse", model, "--data", tmp_path / "prompts.jsonl", "--batch-size", 1, "--check", 2, "--output")
    fast, done = FastAttributor.attribute, []

    def refuse_some(self: FastAttributor, batch: Any, targets: Any) -> Any:
        done.append(batch)
        if len(done) == 7:
            raise KeyboardInterrupt
        if len(batch[0]) % 2:
            raise NotExactError("its length is odd")
        return fast(self, batch, targets)

    monkeypatch.setattr(FastAttributor, "attribute", refuse_some)
    assert shell(*words, tmp_path / "scores.h5").code == 130
    for name in ("scores.h5", "undisturbed.h5"):
        said = shell.done(*words, tmp_path / name).err
        assert said.startswith("warning: the fast engine is not exact on one of the batches (its length is odd)")
        warned, *progress = said.splitlines()  # progress where the machine is slow
        assert "which is slow" in warned and all(line.startswith("Analysing") for line in progress)
    with h5py.File(tmp_path / "scores.h5") as file, h5py.File(tmp_path / "undisturbed.h5") as undisturbed:
        np.testing.assert_array_equal(file["dataset"][:], undisturbed["dataset"][:])


def test_few_steps_are_called_few(shell: Shell, llama_dir: Path, data: Path) -> None:
    words = ("analyse", llama_dir, "--data", data, "--steps")
    for mode in ([], ["--no-log"]):
        few = shell.done(*words, 2, "--output", f"few{len(mode)}", *mode)
        assert "2 steps of riemann_trapezoid are few for this model, try --ig-method gausslegendre --steps 7" in few.err
        assert not shell.done(*words, 14, "--output", f"many{len(mode)}", *mode).err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--write-mode", "x"], "--write-mode x"),
        (["--write-mode", "a", "--no-log"], "leave out one of them"),
        (["--definition", "best"], "--definition best"),
        (["--ig-method", "simpson"], "--ig-method simpson"),
        (["--batch-size", "big"], "batch size 'big'"),
        (["--memory-budget", "much"], "'much'"),
        (["--quota", "ten"], "'ten'"),
        (["--subjects", "law"], "subject 'law'"),
        (["--no-log", "--strategy", "random"], "strategy 'random'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    shell: Shell, llama_dir: Path, data: Path, words: list[str], problem: str
) -> None:
    refused = shell("analyse", llama_dir, "--data", data, *words)
    assert refused.code == 2
    assert problem in refused.err
    assert refused.err.count("\n") == 1
    assert not list(Path("kva_result").rglob("*.*"))


def test_merge_and_inspect(shell: Shell, llama_dir: Path, data: Path) -> None:
    for subject in ("maths", "history"):
        shell.done("analyse", llama_dir, "--data", data, "--output", f"{subject}.h5", "--subjects", subject)
    merged = shell.done("merge", "maths.h5", "history.h5", "--output", "all.h5")
    assert merged.out == "12 samples of 2 files: all.h5\n"
    shown = shell.done("inspect", "all.h5", "--rows", 3, "--quota", 25).out
    for text in ("12 samples, 3 layers, 32 rows per layer", "captum", "layer 2, row", "maths, and all", "negative"):
        assert text in shown
    again = shell("merge", "maths.h5", "all.h5", "--output", "twice.h5")
    assert again.code == 2
    assert "is in maths.h5 and in all.h5" in again.err


def test_inspect_shows_published_files(shell: Shell, tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.h5", np.zeros((2, 3, 20), np.float32))
    with h5py.File(tmp_path / "scores.h5", "a") as file:
        for name in [*file.attrs, *(key for key in file if key != "dataset")]:
            del (file.attrs if name in file.attrs else file)[name]
    assert "a file of the published project" in shell.done("inspect", tmp_path / "scores.h5").out
