"""The public surface is what the documentation promises, and `src.loki` works as in the published notebooks."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import loki

SOURCE = Path(loki.__file__).parent.parent
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
MORE = {"LoKIConfig", "attribute", "loki_classes"} | {
    f"LoKI{family}{kind}"
    for family in ("Qwen3", "Mistral", "Gemma2", "Gemma3", "Phi3")
    for kind in ("Config", "ForCausalLM")
}
MODULES = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("models", "implanting", "kva")
    for file in (SOURCE / "loki" / folder).rglob("*.py")
} - {"loki.implanting.llamafactory.worker"}


def test_exported_names() -> None:
    assert set(loki.__all__) == PUBLISHED | MORE
    assert all(hasattr(loki, name) for name in loki.__all__)
    assert loki.LoKIQwenForCausalLM is loki.LoKIQwen2ForCausalLM


def test_unknown_names_are_refused() -> None:
    assert not hasattr(loki, "LoKINothing")
    assert not hasattr(loki, "nothing")


@pytest.mark.parametrize(
    "code",
    [
        # The published notebooks.
        """
        from src.loki import LoKILinear, create_loki_model
        from src.loki.kva import KVALlamaForCausalLM, KVAQwenForCausalLM
        import loki
        assert loki.LoKILinear is LoKILinear
        """,
        # The published module paths.
        """
        from src.loki.loki_linear import LoKILinear, apply_loki_linear
        from src.loki.loki_llama_model import LoKILlamaConfig, LoKILlamaForCausalLM
        from src.loki.loki_qwen_model import LoKIQwenConfig, LoKIQwenForCausalLM
        from src.loki.kva.kva_llama import KVALlamaForCausalLM
        from src.loki.kva.kva_qwen2 import KVAQwenForCausalLM
        import loki, loki.kva
        assert (loki.LoKILinear, loki.LoKILlamaForCausalLM) == (LoKILinear, LoKILlamaForCausalLM)
        assert (loki.LoKIQwenConfig, loki.kva.KVAQwenForCausalLM) == (LoKIQwenConfig, KVAQwenForCausalLM)
        """,
        # Nothing heavy is imported before it is needed.
        """
        import sys
        import loki.cli
        assert not {"torch", "transformers", "peft"} & set(sys.modules)
        """,
        # Whichever comes first, LoKI's classes are known.
        """
        import loki
        from transformers import AutoConfig, AutoModelForCausalLM
        from peft import PeftType
        config = AutoConfig.for_model("loki_llama", target_pos=[[0]], num_hidden_layers=1)
        assert type(config) is loki.LoKILlamaConfig
        assert AutoModelForCausalLM._model_mapping[type(config)] is loki.LoKILlamaForCausalLM
        assert "LOKI" in PeftType.__members__
        """,
        """
        from transformers import AutoConfig
        import peft
        import loki
        assert "LOKI" in peft.PeftType.__members__
        assert type(AutoConfig.for_model("loki_qwen2")) is loki.LoKIQwenConfig
        """,
        """
        import loki.implanting.modeling
        from transformers import AutoConfig
        assert type(AutoConfig.for_model("loki_phi3")).__name__ == "LoKIPhi3Config"
        """,
        """
        import loki, trl
        from peft import PeftType
        from transformers import AutoConfig
        assert type(AutoConfig.for_model("loki_llama")) is loki.LoKILlamaConfig
        assert "LOKI" in PeftType.__members__
        """,
        # Libraries look for each other without importing what they find.
        """
        from importlib.util import find_spec
        import loki
        assert find_spec("transformers") and find_spec("peft")
        from peft import PeftType
        from transformers import AutoConfig
        assert type(AutoConfig.for_model("loki_llama")) is loki.LoKILlamaConfig
        assert "LOKI" in PeftType.__members__
        """,
        """
        from loki import LoKIConfig
        from peft import PeftType
        assert LoKIConfig(positions=[[0]]).peft_type == PeftType.LOKI
        """,
    ],
)
@pytest.mark.slow
def test_imports_in_every_order(code: str) -> None:
    check_that_it_runs(code)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["loki.kva", "loki.models.loading", "loki.implanting.peft"])
def test_a_module_can_be_imported_first(module: str) -> None:
    check_that_it_runs(f"import {module}; from transformers import AutoConfig; AutoConfig.for_model('loki_llama')")


@pytest.mark.slow
def test_every_module_can_be_imported_first() -> None:
    """Each in a process that was forked when the libraries were imported, and nothing of LoKI."""
    check_that_it_runs(
        f"""
        import importlib, os, sys, traceback
        import peft, torch, transformers, trl
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Trainer
        assert "loki" not in sys.modules

        def imported(module):
            try:
                importlib.import_module(module)
                AutoConfig.for_model("loki_llama")
            except BaseException:
                traceback.print_exc()
                return False
            return True

        failed = []
        for module in {sorted(MODULES)}:
            child = os.fork()
            if not child:
                os._exit(not imported(module))
            if os.waitpid(child, 0)[1]:
                failed.append(module)
        sys.exit(", ".join(failed) or 0)
        """
    )


def check_that_it_runs(code: str) -> None:
    root = Path(__file__).parent.parent
    finished = subprocess.run([sys.executable, "-c", dedent(code)], cwd=root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
