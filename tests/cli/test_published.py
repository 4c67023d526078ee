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
