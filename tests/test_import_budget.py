"""What is imported before it is needed, counted in modules: seconds say nothing on a busy machine."""

import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "captum",
    "datasets",
    "h5py",
    "matplotlib",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
}
HELP = "import sys; sys.argv = ['loki', {words}]; from loki.cli.main import main; main()"
PROGRAM = """
import sys
before = set(sys.modules)
try:
    {code}
except SystemExit:
    pass
print(*(set(sys.modules) - before), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("code", "most"),
    [
        pytest.param("import loki", 100, id="import loki"),  # 61 on Python 3.11
        # 466, of which Typer's and Rich's are 400.
        pytest.param(HELP.format(words="'--help'"), 600, id="loki --help"),
        pytest.param(HELP.format(words="'train', '--help'"), 600, id="loki train --help"),
    ],
)
def test_nothing_heavy_is_imported_and_little_else(code: str, most: int) -> None:
    program = PROGRAM.format(code=code)
    # In an interpreter of its own: the server of `tests.programs` has imported the libraries.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert "loki" in imported
    assert not HEAVY & imported
    assert len(imported) < most, f"{len(imported)} modules were imported: make what `{code}` does not need lazy"
