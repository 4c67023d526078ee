"""LoKI model classes: an ordinary causal language model whose selected rows alone are trainable."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.implanting.directions import find_directions, write_directions
from loki.implanting.linear import LoKILinear
from loki.implanting.protected import directions_of, protect_rows
from loki.implanting.sharding import full_state_dict, refuse_zero_3, rows_are_kept_apart
from loki.implanting.splitting import loki_linears, split_rows
from loki.models.architectures import LOKI_FAMILIES, LOKI_MODEL_TYPE_PREFIX, base_model_type
from loki.models.checkpoint import Checkpoint
from loki.models.classes import class_of_type
from loki.models.rewriting import rewrite_weights
from loki.models.tensor_names import stored_modules

REMOTE_MODULE = "modeling_loki"

_REMOTE_SOURCE = '''"""Lets AutoModelForCausalLM load this model with trust_remote_code=True; needs loki-llm."""

from loki.implanting.modeling import loki_classes

_Config, _Model = loki_classes("{base}")


class {config}(_Config):
    """Configuration of this directory's model."""


class {model}(_Model):
    """The model, with its selected rows trainable."""

    config_class = {config}
'''


class _WrittenRemoteModule:
    """Keeps Transformers from copying this module beside a checkpoint, as it copies that of any class from a directory.

    The one that `save_pretrained` writes stands in its place.
    """

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: `auto_map` says all there is to say."""
        del auto_class


_loading: ContextVar[bool] = ContextVar("loki_loading", default=False)


class LoKIModelMixin(_WrittenRemoteModule):
    """What LoKI model classes add to their Transformers base: splitting after loading, plain weights on disk.

    The configuration holds `target_pos`, one list of row indices per layer. Weights are loaded into ordinary Linears,
    which are split into `LoKILinear` afterwards, so that exactly the selected rows are trainable.
    """

    config: Any
    unquantised: Path | None = None  # directory of the frozen weights, where those at work are quantised

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if not _loading.get():
            self.split()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; exactly the selected rows are trainable afterwards.

        Raises:
            LokiError: if the configuration holds no positions, they do not fit the model, or DeepSpeed ZeRO-3 is on.
        """
        refuse_zero_3()
        with _loading_weights():
            loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        # With output_loading_info=True, Transformers returns a pair.
        (loaded[0] if isinstance(loaded, tuple) else loaded).split()
        return loaded

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: whatever computes here is a class of Transformers.

        Of code that it takes for custom, Transformers leaves buffers that a parent module sets as they come out of the
        memory (Falcon-H1).
        """
        return False

    @property
    def base_model(self) -> Any:
        """The decoder under the language model head; in Llama 4, Transformers takes the whole model for it."""
        found = super().base_model  # type: ignore[misc]
        if found is not self:
            return found
        text = getattr(self, "language_model", self)  # of its wrapper
        return getattr(text, "model", text)

    def split(self) -> None:
        """Make the selected rows trainable and everything else frozen.

        Raises:
            LokiError: if the configuration holds no positions, or they do not fit the model.
        """
        positions: Positions | None = getattr(self.config, "target_pos", None)
        if positions is None:
            raise LokiError("the configuration has no target_pos: make the LoKI model directory with `loki create`")
        split_rows(self, positions)
        if self.config.directions_digest is not None:
            protect_rows(self, find_directions(self.config.name_or_path, self.config.directions_digest))

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers: the weights on disk are ordinary ones, with the trained rows in place.

        Where FSDP2 shards the model and no `state_dict` is given, every process must call this.
        """
        self.config.auto_map = auto_map(self.config.model_type)
        model: Any = self
        if self.unquantised is not None:
            if is_main_process:
                self._save_unquantised(Path(save_directory), self.unquantised)
                self._save_beside(Path(save_directory))
            return None
        # Rows of all experts are never apart: they are refused under FSDP, and not protected.
        linears = {name: linear for name, linear in loki_linears(model).items() if isinstance(linear, LoKILinear)}
        if state_dict is None and any(linear.rows_apart for linear in linears.values()):
            sharded = any(rows_are_kept_apart(linear.weight) for linear in linears.values())
            state_dict = full_state_dict(model) if sharded else model.state_dict()
        if state_dict:  # of a sharded model, only the main process has it
            state_dict = dict(state_dict)
            for name, linear in linears.items():
                linear.merge_into(state_dict, f"{name}.")
        result = super().save_pretrained(  # type: ignore[misc]
            save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs
        )
        if is_main_process:
            self._save_beside(Path(save_directory))
        return result

    def _save_beside(self, target: Path) -> None:
        """Write what stands beside the weights of a LoKI model alone."""
        model: Any = self
        write_remote_module(target, self.config.model_type)
        if directions := directions_of(model):
            write_directions(target, directions)

    def _save_unquantised(self, target: Path, source: Path) -> None:
        """Save the weights in `source`, with this model's rows in place."""
        model: Any = self
        # Rows of all experts are never trained beside quantised weights (`loki.implanting.training.quantised`).
        linears = {name: module for name, module in loki_linears(model).items() if isinstance(module, LoKILinear)}
        stored = stored_modules(model, list(linears), Checkpoint(source).names())
        trained = dict(zip(stored, linears.values(), strict=True))

        def with_rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
            linear = trained.get(name.rpartition(".")[0])
            if linear is None:
                return tensor
            merged = linear.merged_weight() if name.endswith(".weight") else linear.merged_bias()
            return tensor if merged is None else merged.to("cpu", tensor.dtype)

        target.mkdir(parents=True, exist_ok=True)
        rewrite_weights(source, target, with_rows)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(target)
        if model.can_generate():
            model.generation_config.save_pretrained(target)


@contextmanager
def _loading_weights() -> Iterator[None]:
    token = _loading.set(True)
    try:
        yield
    finally:
        _loading.reset(token)


class LoKIConfigMixin(_WrittenRemoteModule):
    """What LoKI configurations add to their Transformers base.

    Attributes:
        target_pos: active rows of every layer.
        base_model_name_or_path: the model that this one was made from.
        base_fingerprint: hash of that model's weights (`loki.models.checkpoint.fingerprint`).
        base_rows_fingerprint: hash of the active rows before training.
        base_dtype: the type that the weights had when the directory was made.
        protect: share of the input directions that are left alone (`loki.implanting.directions`); None: none is.
        directions_digest: hash of the input directions that the rows are trained along, which stand in a file beside
            the weights.
        experts: which rows are meant where the model has experts (`loki.models.experts.Experts`); None: it has none.
    """

    model_type: ClassVar[str]
    target_pos: ClassVar[Any] = None
    base_model_name_or_path: ClassVar[Any] = None
    base_fingerprint: ClassVar[Any] = None
    base_rows_fingerprint: ClassVar[Any] = None
    base_dtype: ClassVar[Any] = None
    protect: ClassVar[Any] = None
    directions_digest: ClassVar[Any] = None
    experts: ClassVar[Any] = None


def class_names(model_type: str) -> tuple[str, str]:
    """Names of the configuration and model classes of a family, `("LoKILlamaConfig", "LoKILlamaForCausalLM")`.

    Raises:
        LokiError: if Transformers has no causal language model of this type.
    """
    base = base_model_type(model_type)
    held_by = class_of_type(base)
    if held_by is None:
        raise LokiError(f"Transformers has no causal language model of type {base}: it cannot be implanted")
    prefix = LOKI_FAMILIES.get(base) or held_by.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    if held_by.endswith("ForConditionalGeneration"):  # beside the text model's own `LoKIGemma3ForCausalLM`
        return f"LoKI{held_by}Config", f"LoKI{held_by}"
    return f"LoKI{prefix}Config", f"LoKI{prefix}ForCausalLM"


def loki_classes(model_type: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    """The LoKI configuration and model classes of a family, made and registered with the Auto classes on first use.

    Args:
        model_type: `llama` or `loki_llama`.

    Raises:
        LokiError: if Transformers has no causal language model of this type.
    """
    base = base_model_type(model_type)
    module = sys.modules[__name__]
    config_name, model_name = class_names(base)
    if not hasattr(module, model_name):
        base_config = CONFIG_MAPPING[base]
        base_model = getattr(transformers, class_of_type(base) or "")
        config = type(
            config_name,
            (LoKIConfigMixin, base_config),
            {
                "__module__": __name__,
                "__doc__": f"{base_config.__name__} with the positions of the active rows; see LoKIConfigMixin.",
                "model_type": LOKI_MODEL_TYPE_PREFIX + base,
            },
        )
        model = type(
            model_name,
            (LoKIModelMixin, base_model),
            {
                "__module__": __name__,
                "__doc__": f"{base_model.__name__} whose selected rows alone are trainable; see LoKIModelMixin.",
                "config_class": config,
            },
        )
        setattr(module, config_name, config)
        setattr(module, model_name, model)
        _take_over_key_conversions({base: LOKI_MODEL_TYPE_PREFIX + base, base_model.__name__: model_name})
        AutoConfig.register(LOKI_MODEL_TYPE_PREFIX + base, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        if base_config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            AutoModelForImageTextToText.register(config, model, exist_ok=True)
    return getattr(module, config_name), getattr(module, model_name)


def auto_map(model_type: str) -> dict[str, str]:
    """What `config.json` says for loading with `trust_remote_code=True`."""
    config_name, model_name = class_names(model_type)
    classes = {"AutoConfig": config_name, "AutoModelForCausalLM": model_name}
    if model_name.endswith("ForConditionalGeneration"):
        classes["AutoModelForImageTextToText"] = model_name
    return {auto: f"{REMOTE_MODULE}.{name}" for auto, name in classes.items()}


def write_remote_module(directory: Path, model_type: str) -> None:
    """Write the module that `auto_map` names.

    It subclasses the classes of the installed package: a module that merely re-exported them would make checkpoints
    that cannot be loaded again.
    """
    config_name, model_name = class_names(model_type)
    source = _REMOTE_SOURCE.format(base=base_model_type(model_type), config=config_name, model=model_name)
    (directory / f"{REMOTE_MODULE}.py").write_text(source, encoding="utf-8")


def _take_over_key_conversions(names: dict[str, str]) -> None:
    """Some families store tensors under other names than the module's; Transformers looks them up by type and class."""
    for name, loki_name in names.items():
        conversions = get_checkpoint_conversion_mapping(name)
        if conversions is not None:
            register_checkpoint_conversion_mapping(loki_name, conversions, overwrite=True)


class _MadeOnDemand(dict[str, type[PretrainedConfig]]):
    """The configurations registered with Transformers, among them those of every `loki_*` type: made when looked up.

    Any family can be implanted, so the types cannot all be registered beforehand. Whoever reads a configuration
    (AutoConfig, a pipeline, a trainer) looks its type up here first.
    """

    def __contains__(self, model_type: object) -> bool:
        if super().__contains__(model_type):
            return True
        if not isinstance(model_type, str) or not model_type.startswith(LOKI_MODEL_TYPE_PREFIX):
            return False
        try:
            loki_classes(model_type)
        except LokiError:  # Transformers then says that it does not know the type
            return False
        return super().__contains__(model_type)


if not isinstance(CONFIG_MAPPING._extra_content, _MadeOnDemand):
    CONFIG_MAPPING._extra_content = _MadeOnDemand(CONFIG_MAPPING._extra_content)
for _family in LOKI_FAMILIES:
    loki_classes(_family)
# The published project's names for Qwen2 and Qwen2.5.
LoKIQwenConfig, LoKIQwenForCausalLM = loki_classes("qwen2")
