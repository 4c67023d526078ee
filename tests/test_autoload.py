"""Watching for imports: the work is done right after, and nowhere else."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

import loki_autoload
from tests.evaluation.models import save_loki_adapter
from tests.programs import run_python

PROGRAM = """
import sys
import loki_autoload
loki_autoload.watch_llamafactory()
loki_autoload.watch_llamafactory()
assert sum(type(item).__module__ == "loki_autoload" for item in sys.meta_path) == 1
assert not {"torch", "transformers", "peft", "loki"} & set(sys.modules)
from llamafactory.model import adapter
assert "loki" not in sys.modules, "imported before an adapter is loaded"
assert not any(type(item).__module__ == "loki_autoload" for item in sys.meta_path)
"""


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    source = Path(loki_autoload.__file__).parent
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(folder)!r}, {str(source)!r}]\n{code}"],
        capture_output=True,
        text=True,
        env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    )


@pytest.fixture
def llamafactory(tmp_path: Path) -> Path:
    package = tmp_path / "llamafactory" / "model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    (package / "adapter.py").write_text(
        "def _setup_full_tuning(model): pass\n"
        "def _setup_freeze_tuning(model): pass\n"
        "def _setup_lora_tuning(model, is_trainable, cast_trainable_params_to_fp32):\n"
        "    from peft import PeftType\n"
        "    print('LOKI' in PeftType.__members__)\n"
        "    return model\n"
    )
    return tmp_path


@pytest.mark.slow
def test_loki_is_imported_when_an_adapter_is_loaded(llamafactory: Path) -> None:
    setup = "from torch import nn; adapter._setup_lora_tuning(nn.Linear(1, 1), True, True)"
    finished = run(llamafactory, PROGRAM + setup)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["True"]


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["loki_autoload.watch_llamafactory(); ", ""])
@pytest.mark.parametrize("imports", ["import loki; {adapter}", "{adapter}; import loki"])
def test_beside_loki_it_is_changed_at_once(llamafactory: Path, hook: str, imports: str) -> None:
    wrapped = "adapter._setup_full_tuning.__wrapped__, adapter._setup_lora_tuning.__wrapped__"
    imports = imports.format(adapter="from llamafactory.model import adapter")
    finished = run(llamafactory, f"import loki_autoload; {hook}{imports}; print({wrapped})")
    assert finished.returncode == 0, finished.stderr
    assert (finished.stdout.count("function"), finished.stdout.count("with_loki")) == (2, 0)


ADAPTER_LOADERS = {
    "AutoPeftModelForCausalLM": "from peft import AutoPeftModelForCausalLM as P; model = P.from_pretrained(adapter)",
    "PeftModel": "from peft import PeftModel as P; model = P.from_pretrained(A.from_pretrained(base), adapter)",
    "AutoModelForCausalLM": "model = A.from_pretrained(adapter)",
    "load_adapter": "model = A.from_pretrained(base); model.load_adapter(adapter)",
    "pipeline": "from transformers import pipeline; model = pipeline('text-generation', model=adapter).model",
}


# Transformers' own loading of adapters imports what this release of PEFT lacks, whatever the method.
OLD_PEFT = Version(version("peft")) <= Version("0.18.1")
BY_TRANSFORMERS = pytest.mark.skipif(OLD_PEFT, reason="Transformers loads no adapters with this release of PEFT")


@pytest.mark.parametrize(
    "loader",
    [pytest.param(loader, marks=() if "Peft" in loader else BY_TRANSFORMERS) for loader in ADAPTER_LOADERS],
)
def test_a_loki_adapter_is_loaded_by_who_never_imports_loki(loader: str, llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_loki_adapter(llama_dir, tmp_path / "adapter")
    ran = run_python(
        "-c",
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM as A, AutoConfig\n"
        "from peft import PeftConfig, PeftType\n"
        "base, adapter = sys.argv[1:]\n"
        "assert 'LOKI' not in PeftType.__members__ and 'loki' not in sys.modules\n"
        f"{ADAPTER_LOADERS[loader]}\n"
        "logits = model(torch.arange(9)[None]).logits\n"
        "print(float((logits - A.from_pretrained(base)(torch.arange(9)[None]).logits).abs().max()))",
        llama_dir,
        adapter,
    )
    assert float(ran.stdout.split()[-1]) > 1e-3


def test_other_adapters_are_read_without_loki(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    code = (
        "import sys; from peft import PeftConfig as P; print(P.from_pretrained(sys.argv[1]).r, 'loki' in sys.modules)"
    )
    assert run_python("-c", code, tmp_path).stdout.split()[-2:] == ["4", "False"]


def test_another_release_of_llamafactory_is_left_alone(llamafactory: Path) -> None:
    (llamafactory / "llamafactory" / "model" / "adapter.py").write_text("VALUE = 3\n")
    finished = run(llamafactory, PROGRAM + "assert adapter.VALUE == 3")
    assert finished.returncode == 0, finished.stderr


def test_a_module_that_is_there_already_is_not_waited_for() -> None:
    seen = []
    loki_autoload.after_import("json", seen.append)
    assert [module.__name__ for module in seen] == ["json"]


def test_a_module_that_replaces_itself_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "chameleon.py").write_text(
        "import sys, types\nsys.modules[__name__] = types.SimpleNamespace(colour='green')\n"
    )
    finished = run(
        tmp_path,
        "import loki_autoload\n"
        "loki_autoload.after_import('chameleon', lambda module: print(module.colour))\n"
        "import chameleon",
    )
    assert finished.stdout == "green\n", finished.stderr


def test_llamafactory_missing_is_said_as_ever(tmp_path: Path) -> None:
    finished = run(
        tmp_path, "import loki_autoload; loki_autoload.watch_llamafactory(); import llamafactory.model.adapter"
    )
    assert "No module named 'llamafactory'" in finished.stderr


def test_it_costs_one_small_module_and_touches_nothing_else(tmp_path: Path) -> None:
    finished = run(
        tmp_path,
        "import torch\n"
        "before, finders, hooks = set(sys.modules), list(sys.meta_path), list(sys.path_hooks)\n"
        "import loki_autoload; loki_autoload.watch_llamafactory(); loki_autoload.watch_lm_eval()\n"
        "loki_autoload.watch_peft()\n"
        "assert set(sys.modules) - before == {'loki_autoload'}, set(sys.modules) - before\n"
        "first, second, third, *others = sys.meta_path\n"
        "assert (others, sys.path_hooks) == (finders, hooks)\n"
        "names = ('json', 'llamafactory', 'llamafactory.model', 'lm_eval', 'lm_eval.models', 'peft')\n"
        "assert all(watch.find_spec(name, None) is None for watch in (first, second, third) for name in names)",
    )
    assert finished.returncode == 0, finished.stderr


def test_it_is_declared_as_pytorch_finds_it() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["torch.backends"] == {
        "loki": "loki_autoload:watch_llamafactory",
        "loki_lm_eval": "loki_autoload:watch_lm_eval",
        "loki_peft": "loki_autoload:watch_peft",
    }
