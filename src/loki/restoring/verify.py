"""Verifying that nothing but the selected rows of a model differs from its base."""

from dataclasses import dataclass, replace

import torch

from loki.artefacts.positions import Positions
from loki.errors import CheckFailed
from loki.implanting.modeling import LoKIConfigMixin
from loki.models.checkpoint import SINGLE_NAME, shards_beside_single_file
from loki.models.classes import skeleton
from loki.models.experts import RowTensor
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.models.rewriting import all_finite
from loki.models.tensor_names import module_names, selected_by_tensor
from loki.restoring.ordinary import ordinary_config
from loki.restoring.same_outputs import different_fields, logits_of, probe_prompts, put_rows, same_bits


@dataclass(frozen=True)
class Difference:
    """One thing that differs where it should not.

    Attributes:
        tensor: name of the tensor, or what else it is.
        reason: what differs, in words.
    """

    tensor: str
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor}: {self.reason}"


@dataclass(frozen=True)
class VerifyReport:
    """What comparing two models showed.

    Attributes:
        tensors: number of tensors compared.
        changed_rows: number of selected rows that differ.
        selected_rows: number of selected rows.
        differences: what differs elsewhere; empty if the check holds.
        prompts: number of prompts whose logits were compared; 0 where a difference was found before.
    """

    tensors: int
    changed_rows: int
    selected_rows: int
    differences: list[Difference]
    prompts: int = 0

    def raise_for_differences(self, shown: int = 5) -> None:
        """Raise unless nothing but selected rows differs.

        Raises:
            CheckFailed: with the first `shown` differences.
        """
        if self.differences:
            listed = "; ".join(map(str, self.differences[:shown]))
            more = len(self.differences) - shown
            raise CheckFailed(
                f"{len(self.differences)} differences outside the selected rows: {listed}"
                + (f"; and {more} more" if more > 0 else "")
            )


def verify(
    base: AnyModel,
    tuned: AnyModel,
    positions: Positions,
    *,
    device: str = "cpu",
    trust_remote_code: bool = False,
    experts: str | None = None,
) -> VerifyReport:
    """Prove that two models differ in nothing but selected rows.

    Every tensor is compared, one of each model in memory at a time, under the names that the modules have: only the
    listed rows of each layer's `down_proj.weight`, and their entries of its bias, may differ, and every value must be
    finite. Fields of the configuration that change what is computed must be equal. Where all this holds, both models
    run on a few prompts, the tuned one with the base's rows put back: their logits must be equal to the last bit.

    Args:
        base: the model before, a local directory or hub id.
        tuned: the model after: restored, or a LoKI model directory.
        positions: the rows that may differ, per layer.
        device: where to run the models.
        trust_remote_code: run Python code that the models bring along.
        experts: which rows are meant where the models have experts, see `loki.models.experts.Experts`; None takes what
            a LoKI model says of itself.

    Raises:
        LokiError: if a model cannot be read, or the positions do not fit it.
    """
    tuned = ModelDirectory.of(tuned, trust_remote_code=trust_remote_code)
    experts = experts or getattr(tuned.config, "experts", None)
    base = ModelDirectory.of(base, trust_remote_code=trust_remote_code, experts=experts)
    base.editable_rows(positions)
    before, after = _Model(base), _Model(tuned)
    # By the names that `_Model` gives them.
    layers = [
        [tensor if tensor.part is not None else replace(tensor, name=tensor.parameter) for tensor in tensors]
        for tensors in base.row_tensors
    ]
    allowed = {tensor.name: tensor for tensors in layers for tensor in tensors}
    layer_of = {tensor.name: layer for layer, tensors in enumerate(layers) for tensor in tensors}
    selected = selected_by_tensor(layers, positions)
    differences = [difference for model in (before, after) for difference in model.contradictions()]
    differences += [
        Difference(f"configuration, {field}", reason)
        for field, reason in different_fields(before.config, after.config).items()
    ]
    if before.dtype != after.dtype:
        differences.append(Difference("configuration, dtype", f"{before.dtype} became {after.dtype}"))
    changed: set[tuple[int, int]] = set()
    everything = sorted({*before.tensors, *after.tensors})
    for name in everything:
        if name not in before.tensors or name not in after.tensors:
            if reason := _alone(name, before, after):
                differences.append(Difference(name, reason))
            continue
        rows = positions[layer_of[name]] if name in layer_of else []
        found, reason = _compare(before.tensor(name), after.tensor(name), allowed.get(name), rows)
        changed |= {(layer_of[name], row) for row in found}
        if reason:
            differences.append(Difference(name, reason))
    prompts = []
    if not differences:
        prompts = probe_prompts(before.config)
        expected = logits_of(base.load(device=device), prompts)
        model = tuned.load(device=device)
        rows_of_base = {name: before.tensor(name)[index] for name, index in selected.items()}
        put_rows(model, [(allowed[name], index, rows_of_base[name]) for name, index in selected.items()])
        for number, (logits, wanted) in enumerate(zip(logits_of(model, prompts), expected, strict=True)):
            if not same_bits(logits, wanted):
                differences.append(
                    Difference(f"logits of prompt {number}", "differ although the selected rows are those of the base")
                )
    return VerifyReport(len(everything), len(changed), sum(map(len, positions)), differences, len(prompts))


class _Model:
    """A model directory as Transformers would load it: its ordinary configuration, and tensors by module name."""

    def __init__(self, directory: ModelDirectory) -> None:
        self._directory = directory
        self._checkpoint = directory.checkpoint
        loaded = directory.config
        self.config = ordinary_config(loaded) if isinstance(loaded, LoKIConfigMixin) else loaded
        self.skeleton = skeleton(self.config, trust_remote_code=directory.trust_remote_code)
        names = module_names(self.skeleton, self._checkpoint.names())
        self.tensors = {name: stored for stored, name in names.items()}
        self.tied: dict[str, str] = dict(getattr(self.skeleton, "all_tied_weights_keys", {}))

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model is loaded in if no other is asked for."""
        stored = (tensor.dtype for _, tensor in self._checkpoint.tensors() if tensor.is_floating_point())
        return self.config.dtype or next(stored, torch.float32)

    def tensor(self, name: str) -> torch.Tensor:
        return self._checkpoint.tensor(self.tensors[name])

    def contradictions(self) -> list[Difference]:
        """Shards beside a single file, which Transformers does not read, that say something else."""
        shards = shards_beside_single_file(self._directory.path)
        if shards is None:
            return []
        same = shards.names() == self._checkpoint.names() and all(
            same_bits(tensor, self._checkpoint.tensor(name)) for name, tensor in shards.tensors()
        )
        reason = "is loaded, and the shards beside it hold something else: remove the one or the other"
        return [] if same else [Difference(str(self._directory.path / SINGLE_NAME), reason)]


def _alone(name: str, before: _Model, after: _Model) -> str:
    """Why a tensor that one model lacks matters; empty for one that is tied to another and equal to that."""
    holder = before if name in before.tensors else after
    source = holder.tied.get(name, "")
    if source in holder.tensors:
        same = same_bits(holder.tensor(name), holder.tensor(source))
        return "" if same else f"differs from {source}, which it is tied to, and is missing in the other model"
    return f"missing in {'the tuned model' if holder is before else 'the base model'}"


def _compare(
    before: torch.Tensor, after: torch.Tensor, tensor: RowTensor | None, allowed: list[int]
) -> tuple[list[int], str]:
    """The allowed rows that differ, and in words what else does, or that a row is not finite."""
    if before.shape != after.shape:
        return [], f"shape {list(before.shape)} became {list(after.shape)}"
    if before.dtype != after.dtype:
        return [], f"type {before.dtype} became {after.dtype}"
    if not before.numel():
        return [], ""
    if tensor is not None:
        before, after = before.movedim(tensor.axis, 0), after.movedim(tensor.axis, 0)
    different = before != after
    # NaN is unequal to itself: compare bits where both are NaN.
    if before.is_floating_point():
        different &= ~(before.isnan() & after.isnan())
    rows = different.reshape(len(different), -1).any(dim=1) if different.dim() else different.reshape(1)
    changed = [row for row in allowed if rows[row]]
    if allowed and not after[allowed].isfinite().all():
        broken = [row for row in allowed if not after[row].isfinite().all()]
        return changed, f"{len(broken)} selected rows are NaN or infinite ({', '.join(map(str, broken[:5]))})"
    rows[allowed] = False
    if not rows.any():
        return changed, "" if all_finite(after) else "is NaN or infinite in both models"
    offending = rows.nonzero().flatten().tolist()
    largest = (after.double() - before.double()).abs().reshape(len(rows), -1)[offending].max()
    listed = ", ".join(map(str, offending[:5])) + (", ..." if len(offending) > 5 else "")
    return changed, f"{len(offending)} of {len(rows)} rows differ ({listed}) by up to {float(largest):.3g}"
