"""What is built can be installed, and works without the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import loki
from tests.programs import ROOT

pytestmark = pytest.mark.slow

NEEDED = {
    "loki/demo/weights/config.json",
    "loki/demo/weights/model.safetensors",
    "loki/demo/weights/tokenizer.json",
    "loki/metrics/general.jsonl",
    "loki/py.typed",
    "loki/report/page.html.j2",
    "loki_autoload.py",
}
OF_THE_PROJECT = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "tests/conftest.py"}


def run(*words: object, cwd: Path) -> str:
    """Run a program to its end as if there were no other environment, and return what it printed."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words} exited with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv")  # `uv run` says where it is
    if found is None:
        pytest.skip("there is no uv")
    return found


@pytest.fixture(scope="module")
def built(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built of it."""
    folder = tmp_path_factory.mktemp("dist")
    run(uv, "build", "--quiet", "--out-dir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    assert found.name == f"loki_llm-{loki.__version__}-py3-none-any.whl"
    return found


@pytest.fixture(scope="module")
def sources() -> set[str]:
    """Every file of the repository, those included that are new and not ignored."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git repository, so nothing says which files belong to it")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def installed(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a new environment with the wheel, and with the dependencies of the environment that runs the tests."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    run(uv, "venv", "--quiet", "--python", sys.executable, environment, cwd=environment.parent)
    python = environment / "bin" / "python"
    run(uv, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel, cwd=environment.parent)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment).strip())
    # Named in a .pth file, a folder comes after the environment's own, and .pth files in it, as that of an editable
    # install, are not read.
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return environment / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path, sources: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names >= NEEDED
    assert names == {name.removeprefix("src/") for name in sources if name.startswith("src/")}


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = f"loki_llm-{loki.__version__}.dist-info"
        said = message_from_bytes(archive.read(f"{folder}/METADATA"))
        hooks = archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert (said["Name"], said["License-Expression"]) == ("loki-llm", "Apache-2.0")
    assert said["Requires-Python"] == ">=3.11"
    assert said.get_payload().startswith("# LoKI")
    assert "loki = loki.cli:main" in hooks
    assert "loki_peft = loki_autoload:watch_peft" in hooks


def test_the_sdist_holds_the_repository_and_nothing_else(built: Path, sources: set[str]) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names >= {f"src/{name}" for name in NEEDED} | OF_THE_PROJECT
    assert names <= sources | {"PKG-INFO"}


def test_the_wheel_works_without_the_repository(installed: Path, tmp_path: Path) -> None:
    places = run(
        installed / "python",
        "-c",
        "import loki, loki_autoload as hook; print(loki.__file__, hook.__file__)",
        cwd=tmp_path,
    )
    assert all(Path(place).is_relative_to(installed.parent) for place in places.split())
    assert run(installed / "loki", "--version", cwd=tmp_path).split() == ["loki", loki.__version__]
    assert (
        "everything the phases left is in run"
        in run(installed / "loki", "demo", "--output", "run", cwd=tmp_path).lower()
    )
    assert (tmp_path / "run/restored/model.safetensors").is_file()
    assert (tmp_path / "run/results.json").is_file()


def test_pytorch_finds_the_hook_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import torch, loki_autoload, sys; print(sum(isinstance(f, loki_autoload.Watch) for f in sys.meta_path))"
    assert run(installed / "python", "-c", code, cwd=tmp_path).split() == ["3"]
