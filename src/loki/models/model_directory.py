"""A model directory as an object: looked up once, and each thing in it read at most once."""

from functools import cached_property
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from loki.artefacts.positions import Positions, check_layers_have_rows, check_positions_fit
from loki.errors import LokiError
from loki.inputs import read_json
from loki.models.architectures import MLPOutput, mlp_outputs, text_config
from loki.models.checkpoint import PLAIN_DTYPES, Checkpoint, fingerprint
from loki.models.classes import skeleton
from loki.models.experts import RowTensor, find_experts
from loki.models.loading import load_config, load_model, load_tokenizer, resolve_model
from loki.models.tensor_names import stored_row_tensors

AnyModel: TypeAlias = str | PathLike[str]
"""A model as functions take it: a local directory, a hub id, or a `ModelDirectory`."""


def models_read(*models: AnyModel | None) -> list[str | PathLike[str]]:
    """The models, and the base that a local adapter or LoKI directory among them names: all that is read of them.

    Raises:
        LokiError: if a configuration cannot be read.
    """
    found: list[str | PathLike[str]] = []
    for model in models:
        if model is None:
            continue
        found.append(model)
        for file in (Path(model) / "config.json", Path(model) / "adapter_config.json"):
            value = read_json(file, what="configuration") if file.is_file() else None
            base = value.get("base_model_name_or_path") if isinstance(value, dict) else None
            found += [base] if isinstance(base, str) and base else []
    return found


class ModelDirectory:
    """A local model directory, or the snapshot of a hub repository.

    Make it once where a command begins and pass it on: every look-up of a hub id asks the hub for its snapshot, and a
    configuration that is read twice may have changed in between. It stands for its path wherever a path is taken
    (`Path(directory)`), and `str(directory)` is the name that the user gave.

    What it holds is shared: copy the configuration before changing it.

    Args:
        model: local directory or hub id.
        trust_remote_code: run Python code that the directory brings along.
        experts: which rows are meant where the model has experts, see `loki.models.experts.Experts`.

    Attributes:
        name: `model` as it was given.
        path: the local directory.
        trust_remote_code: see above.
        experts: see above.

    Raises:
        LokiError: if the directory does not exist or the hub cannot be reached. The properties below raise one for
            what is missing or damaged when it is first asked for.
    """

    def __init__(self, model: AnyModel, *, trust_remote_code: bool = False, experts: str | None = None) -> None:
        self.name = str(model)
        self.experts = find_experts(experts)
        self.path = resolve_model(model)
        self.trust_remote_code = trust_remote_code

    @classmethod
    def of(cls, model: AnyModel, *, trust_remote_code: bool = False, experts: str | None = None) -> "ModelDirectory":
        """`model` itself if it has been looked up already, with these rows meant; else the directory that it names."""
        if not isinstance(model, ModelDirectory):
            return cls(model, trust_remote_code=trust_remote_code, experts=experts)
        if experts in (None, model.experts):
            return model
        return cls(model.name, trust_remote_code=model.trust_remote_code or trust_remote_code, experts=experts)

    def __eq__(self, other: object) -> bool:
        """Whether both stand for the same directory."""
        return isinstance(other, ModelDirectory) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.name

    @property
    def reference(self) -> str:
        """Where others find the model: a hub id as it was given, or the absolute path of the directory."""
        return str(self.path.resolve()) if Path(self.name).exists() else self.name

    @cached_property
    def config(self) -> PretrainedConfig:
        """The configuration, see `loki.models.loading.load_config`."""
        return load_config(self.path, trust_remote_code=self.trust_remote_code)

    @property
    def text_config(self) -> PretrainedConfig:
        """The configuration of the language model itself; `hidden_size` is the number of rows D per layer."""
        return text_config(self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, see `loki.models.loading.load_tokenizer`."""
        return load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weights, read lazily; that they are whole has been checked."""
        return Checkpoint(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights; reads them all, see `loki.models.checkpoint.fingerprint`."""
        return fingerprint(self.path)

    @cached_property
    def _outputs(self) -> list[MLPOutput]:
        return mlp_outputs(skeleton(self.config, trust_remote_code=self.trust_remote_code))

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self._outputs)

    @property
    def has_experts(self) -> bool:
        """Whether a layer has experts, so that `experts` must say which rows are meant."""
        return any(output.sparse for output in self._outputs)

    @cached_property
    def row_tensors(self) -> list[list[RowTensor]]:
        """The stored tensors that hold rows, of every layer from the first to the last; none in a layer without rows.

        Their names are nearly always those of the model, see `loki.models.tensor_names`.
        """
        return stored_row_tensors(
            self.config,
            self.checkpoint.names(),
            experts=self.experts,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def layers_with_rows(self) -> list[int]:
        """The layers that have rows: all of them, unless `experts` leaves some out."""
        return [layer for layer, tensors in enumerate(self.row_tensors) if tensors]

    def rows_for(self, positions: Positions, *, origin: str = "positions") -> list[list[RowTensor]]:
        """`row_tensors`, once `positions` have been checked against the model.

        Args:
            positions: selected rows of every layer.
            origin: what the positions are called in error messages.

        Raises:
            LokiError: if the model has no rows to select, or the positions do not fit it.
        """
        found = self.row_tensors
        check_positions_fit(positions, layers=len(found), hidden=self.text_config.hidden_size, origin=origin)
        check_layers_have_rows(positions, self.layers_with_rows, origin=origin)
        return found

    def editable_rows(self, positions: Positions, *, origin: str = "positions") -> list[list[RowTensor]]:
        """`rows_for`, once the stored weights are known to be plain numbers, row by row.

        Args:
            positions: selected rows of every layer.
            origin: what the positions are called in error messages.

        Raises:
            LokiError: for what `rows_for` refuses, and if the model is quantised, or a weight is missing, of
                another shape, or of a type whose values are not those of the model.
        """
        quantised = getattr(self.config, "quantization_config", None)
        if quantised:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
            raise LokiError(
                f"model {self} is quantised ({getattr(method, 'value', method) or 'unknown method'}), so its rows are "
                "not stored as numbers: use the unquantised base model, or train an adapter on it (`loki adapter`)"
            )
        found = self.rows_for(positions, origin=origin)
        for tensor in chain.from_iterable(found):
            dtype = self.checkpoint.dtype(tensor.name)
            if dtype not in PLAIN_DTYPES:
                raise LokiError(
                    f"{tensor.name} of model {self} is of type {str(dtype).removeprefix('torch.')}, not of bfloat16, "
                    "float16, float32 or float64: use the unquantised base model"
                )
        self.checkpoint.check_shapes(chain.from_iterable(found))
        return found

    def check_editable(self) -> None:
        """Refuse a model whose rows are no plain numbers.

        Raises:
            LokiError: see `editable_rows`.
        """
        self.editable_rows([[0] if tensors else [] for tensors in self.row_tensors])

    def check(self) -> None:
        """Check now that the configuration is that of a causal language model, and that the weights are whole.

        Raises:
            LokiError: if not.
        """
        _ = self.config, self.checkpoint

    def load(
        self,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        device_map: str | None = None,
    ) -> PreTrainedModel:
        """The model in evaluation mode; every call loads it anew. See `loki.models.loading.load_model`."""
        return load_model(
            self.path,
            dtype=dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=self.trust_remote_code,
            config=self.config,
        )

    def __getstate__(self) -> dict[str, object]:
        # Another process reads what it needs itself: a configuration made by remote code does not unpickle there.
        return {name: vars(self)[name] for name in ("name", "path", "trust_remote_code", "experts")}
