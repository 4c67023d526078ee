"""Doing something right after a module is imported, whoever imports it.

Any program meets LoKI adapters, and plain `lm_eval` and `llamafactory-cli` LoKI models too, without importing LoKI.
PyTorch calls `watch_peft`, `watch_llamafactory` and `watch_lm_eval` at the end of `import torch`, through its entry
point group `torch.backends` (set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to switch that off). Each only watches for one import:

- of PEFT's module that reads the configurations of adapters; LoKI is imported once one of its own is read;
- of LlamaFactory's module that loads adapters; LoKI is imported once any is loaded;
- of lm-evaluation-harness' module that loads models; LoKI is imported with it.

No other program notices anything. Where LoKI is imported beside LlamaFactory, for whatever reason, `loki/__init__.py`
asks for the same watch, and LlamaFactory is changed at once.

A module outside the package `loki`, because importing that changes what Transformers and PEFT know.
"""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ADAPTER_MODULE = "llamafactory.model.adapter"
LORA_SETUP = "_setup_lora_tuning"
MODELS_OF_LM_EVAL = "lm_eval.models.huggingface"
CONFIGURATIONS_OF_PEFT = "peft.config"


class Watch(MetaPathFinder):
    """Finds one module as Python does, and does something with it right after its import.

    Args:
        module: qualified name of the module.
        action: called with it, once.
    """

    def __init__(self, module: str, action: Callable[[ModuleType], object]) -> None:
        self.module = module
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the watched module, as the other finders find it; None for every other name."""
        if fullname != self.module:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        # To be found is not to be imported: libraries look for each other without importing what they find.
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self._action(sys.modules[fullname])  # a module may replace itself, as Transformers does

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def after_import(module: str, action: Callable[[ModuleType], object]) -> None:
    """Call `action` with the module named `module`: now if it is imported already, else right after its import.

    A module that is watched already is not watched twice.
    """
    if module in sys.modules:
        action(sys.modules[module])
    elif not any(isinstance(finder, Watch) and finder.module == module for finder in sys.meta_path):
        sys.meta_path.insert(0, Watch(module, action))


def watch_llamafactory() -> None:
    """Watch for the import of LlamaFactory's adapter module; a second call changes nothing."""
    if ADAPTER_MODULE not in sys.modules:
        after_import(ADAPTER_MODULE, prepare_llamafactory)


def watch_peft() -> None:
    """Import LoKI once PEFT reads the configuration of a LoKI adapter; a second call changes nothing."""
    if CONFIGURATIONS_OF_PEFT not in sys.modules:
        after_import(CONFIGURATIONS_OF_PEFT, _import_loki_for_its_adapters)


def _import_loki_for_its_adapters(module: ModuleType) -> None:
    mixin = getattr(module, "PeftConfigMixin", None)
    read = getattr(mixin, "from_json_file", None)
    if mixin is None or read is None:  # another release: LoKI adapters are then unknown to it, which it says
        return

    @wraps(read.__func__)
    def from_json_file(cls: type, *args: Any, **kwargs: Any) -> Any:
        found = read.__func__(cls, *args, **kwargs)
        if isinstance(found, dict) and found.get("peft_type") == "LOKI":
            import_module("loki")
        return found

    mixin.from_json_file = classmethod(from_json_file)


def watch_lm_eval() -> None:
    """Import LoKI with the module of lm-evaluation-harness that loads models, so that it knows LoKI's."""
    after_import(MODELS_OF_LM_EVAL, lambda _: import_module("loki"))


def prepare_llamafactory(module: ModuleType) -> None:
    """Have LlamaFactory changed: now where LoKI is imported, else once it sets an adapter up.

    Args:
        module: its adapter module, just imported.
    """
    if "loki" in sys.modules:
        from loki.implanting.llamafactory.patch import patch_when_imported

        patch_when_imported()
        return
    setup = getattr(module, LORA_SETUP, None)
    if setup is None:  # another release: its adapters are then unknown to PEFT, which says so
        return

    @wraps(setup)
    def with_loki(*args: Any, **kwargs: Any) -> Any:
        from loki.implanting.llamafactory.patch import patch_llamafactory

        patch_llamafactory()
        # Patched by now, and around the original.
        return getattr(module, LORA_SETUP)(*args, **kwargs)

    setattr(module, LORA_SETUP, with_loki)
