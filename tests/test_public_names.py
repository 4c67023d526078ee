"""The public surface is what the documentation promises, and `src.loki` works as in the published notebooks."""

import subprocess
import sys
from pathlib import Path

import loki

PUBLISHED = {
    "LoKILinear",
    "LoKILlamaForCausalLM",
    "LoKILlamaConfig",
    "LoKIQwenForCausalLM",
    "LoKIQwenConfig",
    "LoKIQwen2ForCausalLM",
    "LoKIQwen2Config",
    "create_loki_model",
    "restore_loki_model",
    "set_zero_weights",
}
MORE = {"LoKIConfig", "loki_classes"} | {
    f"LoKI{family}{kind}"
    for family in ("Qwen3", "Mistral", "Gemma2", "Gemma3", "Phi3")
    for kind in ("Config", "ForCausalLM")
}


def test_exported_names() -> None:
    assert set(loki.__all__) == PUBLISHED | MORE
    assert all(hasattr(loki, name) for name in loki.__all__)
    assert loki.LoKIQwenForCausalLM is loki.LoKIQwen2ForCausalLM


def test_imports_of_the_published_notebooks() -> None:
    code = (
        "from src.loki import LoKILinear, create_loki_model;"
        "from src.loki.kva import KVALlamaForCausalLM, KVAQwenForCausalLM;"
        "import loki; assert loki.LoKILinear is LoKILinear"
    )
    root = Path(__file__).parent.parent
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
