"""The options of the published project's analysis scripts, translated into those of `loki analyse`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from loki.cli.main import main

_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}  # by accelerate launch's --mixed_precision


def run_published_script() -> None:
    """Be `analyse_mmlu_<model>.py`: run `loki analyse` with this process's arguments."""
    sys.argv = ["loki", *analyse_arguments(sys.argv[1:], os.environ)]
    main()


def analyse_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments of `loki analyse` for those of a published script.

    `--write_mode w` replaces an existing file, as it did there; an interrupted run is continued either way.

    Args:
        arguments: of the script.
        environment: variables of the process; `accelerate launch` gives its `--mixed_precision` there.
    """
    parser = argparse.ArgumentParser(description="Score the rows of a model on MMLU, as `loki analyse` does.")
    parser.add_argument("--model_path", required=True, help="model directory or hub id")
    parser.add_argument("--output_dir", required=True, help="folder for the scores file")
    parser.add_argument("--result_file", default="kva_mmlu.h5", help="name of the scores file")
    parser.add_argument("--write_mode", default="w", choices=["w", "a"], help="w: a new file; a: add missing samples")
    parser.add_argument("--steps", default="7", help="points of the integration rule")
    parser.add_argument("--ig_method", default="riemann_trapezoid", help="integration rule")
    parser.add_argument("--seed", default="0", help="seed of everything drawn by chance")
    parser.add_argument("--use_flash_attention", action="store_true", help="accepted, but the engine brings its own")
    parser.add_argument("--data", default="mmlu", help="a local copy of MMLU, or other calibration data")
    script = parser.parse_args(arguments)
    options = {
        "--data": script.data,
        "--output": str(Path(script.output_dir) / script.result_file),
        "--write-mode": script.write_mode,
        "--steps": script.steps,
        "--ig-method": script.ig_method,
        "--seed": script.seed,
        "--dtype": _DTYPES.get(environment.get("ACCELERATE_MIXED_PRECISION", ""), "auto"),
    }
    words = [script.model_path, *(word for option in options.items() for word in option)]
    return ["analyse", *words, *(["--overwrite"] if script.write_mode == "w" else [])]
