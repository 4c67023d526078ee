import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loki.cli.published import analyse_arguments

REQUIRED = ["--model_path", "models/llama", "--output_dir", "out"]


def test_defaults() -> None:
    assert analyse_arguments(REQUIRED, {}) == [
        *("analyse", "models/llama", "--data", "mmlu", "--output", str(Path("out/kva_mmlu.h5"))),
        *("--write-mode", "w", "--steps", "7", "--ig-method", "riemann_trapezoid", "--seed", "0", "--dtype", "auto"),
        "--overwrite",
    ]


def test_all_options() -> None:
    options = ["--result_file", "kva.h5", "--write_mode", "a", "--steps", "5", "--ig_method", "riemann_left"]
    words = analyse_arguments(
        [*REQUIRED, *options, "--seed", "3", "--use_flash_attention"], {"ACCELERATE_MIXED_PRECISION": "bf16"}
    )
    assert words == [
        *("analyse", "models/llama", "--data", "mmlu", "--output", str(Path("out/kva.h5"))),
        *("--write-mode", "a", "--steps", "5", "--ig-method", "riemann_left", "--seed", "3", "--dtype", "bfloat16"),
    ]


def test_unknown_write_mode(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        analyse_arguments([*REQUIRED, "--write_mode", "x"], {})
    assert raised.value.code == 2
    assert "--write_mode" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("family", "variable"), [("llama", "MODEL"), ("qwen2", "QWEN_MODEL")])
def test_make_targets_start_the_scripts(family: str, variable: str) -> None:
    root = Path(__file__).parents[2]
    command = ["make", "--dry-run", f"analysing_mmlu_{family}", f"{variable}=org/some-model", "OUTPUT_DIR=out"]
    command += ["DATA=copies/mmlu"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    finished = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    words = finished.stdout.replace("\\\n", " ").split()
    script = words.index(f"analyse_mmlu_{family}.py")
    assert (root / words[script]).is_file()
    assert words[script - 5 : script] == ["run", "accelerate", "launch", "--mixed_precision", "bf16"]
    assert analyse_arguments(words[script + 1 :], {"ACCELERATE_MIXED_PRECISION": "bf16"}) == [
        *("analyse", "org/some-model", "--data", "copies/mmlu", "--output", str(Path("out/some-model/kva_mmlu.h5"))),
        *(
            "--write-mode",
            "w",
            "--steps",
            "7",
            "--ig-method",
            "riemann_trapezoid",
            "--seed",
            "0",
            "--dtype",
            "bfloat16",
        ),
        "--overwrite",
    ]
