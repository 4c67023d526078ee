"""Lets a plain `llamafactory-cli` load LoKI adapters, which it would otherwise meet without ever importing LoKI.

PyTorch calls `watch_llamafactory` at the end of `import torch`, through its entry point group `torch.backends`
(set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to switch that off). It only watches for one import: that of LlamaFactory's module
which loads adapters. LoKI itself is imported once an adapter is loaded there. No other program notices anything.

A module outside the package `loki`, because importing that imports Transformers.
"""

import sys
from collections.abc import Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

ADAPTER_MODULE = "llamafactory.model.adapter"
LORA_SETUP = "_setup_lora_tuning"


class AdapterModuleFinder(MetaPathFinder):
    """Finds LlamaFactory's adapter module as Python does, and prepares it for LoKI adapters after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of LlamaFactory's adapter module; None for every other name."""
        if fullname != ADAPTER_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_prepare(module: ModuleType) -> None:
                execute(module)
                _prepare(module)

            spec.loader.exec_module = execute_and_prepare  # type: ignore[method-assign]
        return spec


def watch_llamafactory() -> None:
    """Watch for the import of LlamaFactory's adapter module; a second call changes nothing."""
    if ADAPTER_MODULE not in sys.modules and not any(isinstance(item, AdapterModuleFinder) for item in sys.meta_path):
        sys.meta_path.insert(0, AdapterModuleFinder())


def _prepare(module: ModuleType) -> None:
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
