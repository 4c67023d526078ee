"""The one place where LoKI changes LlamaFactory (0.9.5): what it does to a model between loading and training.

It is changed in every LlamaFactory process that loads a LoKI model or adapter: when LoKI is imported beside it
(`loki/__init__.py`), by `loki_autoload` where an adapter is loaded before that, and by the worker of `loki train`.
"""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from transformers import trainer

from loki.errors import LokiError
from loki.implanting.llamafactory.guard import SelectedRowsGuard, check_selected_rows
from loki.implanting.splitting import loki_linears
from loki_autoload import ADAPTER_MODULE

_SETUPS = ("_setup_full_tuning", "_setup_freeze_tuning", "_setup_lora_tuning")


def patch_llamafactory() -> None:
    """Make LlamaFactory train exactly the selected rows, if it is loaded; a second call changes nothing.

    - In full tuning it casts every parameter to float32 (32 GB for an 8B model). Of a LoKI model, only the trainable
      ones are cast.
    - After its setup, and again when training begins, exactly the selected rows must be trainable.

    Models without selected rows are left alone.

    Raises:
        LokiError: if this release of LlamaFactory is built differently.
    """
    adapter = sys.modules.get(ADAPTER_MODULE)
    if adapter is None or SelectedRowsGuard in trainer.DEFAULT_CALLBACKS:
        return
    for name in _SETUPS:
        setup = getattr(adapter, name, None)
        if setup is None or "model" not in inspect.signature(setup).parameters:
            raise LokiError(f"this release of LlamaFactory has no {name}: install 0.9.5 (`make llamafactory`)")
        setattr(adapter, name, _keeping_frozen_weights(inspect.unwrap(setup)))
    trainer.DEFAULT_CALLBACKS.append(SelectedRowsGuard)


def patch_when_imported() -> None:
    """`patch_llamafactory` at an import, which must not fail: what it raises, a training of selected rows raises."""
    try:
        patch_llamafactory()
    except LokiError as error:
        trainer.DEFAULT_CALLBACKS.append(SelectedRowsGuard(problem=str(error)))


def _keeping_frozen_weights(setup: Callable[..., Any]) -> Callable[..., Any]:
    """One of LlamaFactory's setups, without casting frozen weights, and with a check of what is trainable."""
    signature = inspect.signature(setup)

    @wraps(setup)
    def setup_rows(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        model = given.arguments["model"]
        # LoRA's setup casts trainable parameters alone.
        cast = given.arguments["cast_trainable_params_to_fp32"] and "lora" not in setup.__name__
        if cast and loki_linears(model):
            given.arguments["cast_trainable_params_to_fp32"] = False
        result = setup(*given.args, **given.kwargs)
        tuned = model if result is None else result
        if given.arguments["is_trainable"]:
            check_selected_rows(tuned)
        if cast and loki_linears(model):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.float32)
        return result

    return setup_rows
