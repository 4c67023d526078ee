"""Measuring second moments: one forward pass per text, in batches; an interrupted measurement goes on."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from loki.analysis.options import MomentsSettings
from loki.artefacts.differences import changes
from loki.artefacts.moments import Moments, MomentsOrigin, write_moments
from loki.calibration.texts import Sources, digest_of_texts, listed, load_token_ids
from loki.data.fitting import length_within
from loki.errors import LokiError, one_line
from loki.files import atomic_file, protect_inputs, refuse_existing_file
from loki.models.architectures import output_norm, text_config
from loki.models.experts import Experts, linear_rows
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.ranks import Ranks

_LEAST_SQUARE = 1e-12  # of an output that weighs a token
_TOKENS_PER_INPUT = 8  # below it, more tokens still lower the damage much


def measure_moments(
    model: AnyModel,
    data: Sources,
    output: Path,
    settings: MomentsSettings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MomentsOrigin:
    """Measure the second moment of every `down_proj`'s input on calibration text, and write it to a file.

    Where a model normalises the MLP's output z before it is added to the residual stream (Gemma, OLMo 2), what a change
    of the rows does is divided by the size of z, so a token's inputs are weighed by 1 / mean(z^2). Without that, the
    few tokens with very large activations decide which directions are used; on Gemma 3 270M training did seven times
    the damage (`benchmarks/README.md`).

    The sums of an interrupted measurement stand in `<output>.partial`; the same call again continues from them, to the
    same last bit. Processes that `accelerate launch` or `torchrun` started together share the batches; each has sums of
    its own (`<output>.partial-1-of-2`), and all of them call this.

    Args:
        model: directory or hub id of an ordinary model.
        data: calibration texts, see `loki.calibration.texts.load_token_ids`.
        output: the file to write.
        settings: how; None takes the defaults.
        overwrite: replace the output, or an interrupted measurement with other settings.
        progress: where to show how far it has come.

    Returns:
        What the means are over.

    Raises:
        LokiError: for bad input of any kind, and for values that are NaN or infinite. Of several processes only the
            main one raises it, and the others exit with its code.
    """
    settings, ranks = settings or MomentsSettings(), Ranks.current()
    ranks.on_main(lambda: refuse_existing_file(output, overwrite=overwrite))
    protect_inputs(output, model, *listed(data))
    source = ModelDirectory.of(model, trust_remote_code=settings.trust_remote_code)
    if source.experts is Experts.ALL:
        raise LokiError("--experts all: the inputs of all experts are not measured; use shared or dense")
    loaded = source.load(dtype=settings.dtype, device=ranks.device(settings.device))
    config = text_config(loaded.config)
    texts = load_token_ids(
        data,
        source.tokenizer,
        max_length=length_within(loaded.config, settings.max_length),
        max_tokens=settings.max_tokens,
        vocab_size=config.vocab_size,
        samples_per_subject=settings.samples_per_subject,
        seed=settings.seed,
    )
    texts.sort(key=len)  # so that a batch holds little padding
    origin = MomentsOrigin(
        model=str(model),
        model_fingerprint=source.fingerprint,
        source=", ".join(listed(data)),
        source_digest=digest_of_texts(texts),
        texts=len(texts),
        tokens=sum(map(len, texts)),
        dtype=str(loaded.dtype).removeprefix("torch."),
        loki_version=version("loki-llm"),
        weighted=any(output_norm(loaded, rows.layer_name) for rows in linear_rows(loaded, source.experts)),
    )
    sums = _Sums(loaded, settings.block_size, source.experts)
    partials = [output.with_name(name) for name in _partial_names(output.name, ranks.count)]
    partial = partials[ranks.index]
    identity = {**asdict(origin), "block_size": settings.block_size, "batch_size": settings.batch_size}
    if source.experts is not None:
        identity["experts"] = source.experts.value
    batches = [texts[start : start + settings.batch_size] for start in range(0, len(texts), settings.batch_size)]
    batches = batches[ranks.index :: ranks.count]
    start = ranks.on_all(lambda: sums.resume(partial, identity, overwrite=overwrite))
    task = progress.add_task("Measuring", total=len(batches), completed=start) if progress else None

    def measure() -> None:
        for number, batch in enumerate(batches[start:], start=start + 1):
            sums.add(batch)
            if number % settings.save_every == 0 and number < len(batches):
                sums.save(partial, identity, number)
            if progress and task is not None:
                progress.advance(task)
        if ranks.count > 1:
            sums.save(partial, identity, len(batches))

    def write() -> None:
        for other in partials[1:]:
            sums.add_saved(other)
        write_moments(output, [total.cpu() / origin.tokens for total in sums.totals], origin, overwrite=overwrite)
        sums_of = re.compile(re.escape(output.name) + r"\.partial(-\d+-of-\d+)?")  # of any number of processes
        for left in filter(lambda file: sums_of.fullmatch(file.name), output.parent.iterdir()):
            left.unlink()

    ranks.on_all(measure)
    ranks.on_main(write)
    return origin


def few_tokens_advice(file: Path) -> str | None:
    """What to tell the user of moments over so few tokens that unused directions may only be unseen; else None.

    On SmolLM2-135M (1536 inputs) training with moments of 833 tokens did five times the damage of that with moments of
    16,478, and with those of 4,176 twice (`benchmarks/README.md`).

    Args:
        file: of second moments.
    """
    measured = Moments(file)
    inputs = max(measured.block_sizes)
    wanted = _TOKENS_PER_INPUT * inputs
    if measured.origin.tokens >= wanted:
        return None
    return (
        f"second moments over {measured.origin.tokens:,} tokens say little of {inputs:,} input directions, and what "
        f"looks unused may only not have occurred: give calibration data of {wanted:,} tokens or more"
    )


def _partial_names(output: str, processes: int) -> list[str]:
    """Where every process of a measurement keeps its sums."""
    if processes == 1:
        return [f"{output}.partial"]
    return [f"{output}.partial-{number}-of-{processes}" for number in range(1, processes + 1)]


def blocks_of(width: int, block_size: int) -> int:
    """The least number of equal blocks, none wider than `block_size`, that `width` inputs divide into."""
    return next(count for count in range(1, width + 1) if width % count == 0 and width // count <= block_size)


class _Layer:
    """One layer during a forward pass: hooks that add what its projection is given to the layer's sum.

    Args:
        mask: `[B, T]`; which tokens count.
        total: the sum.
    """

    def __init__(self, mask: torch.Tensor, total: torch.Tensor) -> None:
        self._mask, self._total = mask, total
        self._seen: torch.Tensor | None = None

    def see(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Remember the projection's inputs until the block's output is known."""
        self._seen = self._counted(inputs[0])

    def add(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Add the projection's inputs."""
        self._add(self._counted(inputs[0]))

    def add_weighted(self, _: nn.Module, outputs: tuple[Any, ...]) -> None:
        """Add the inputs that were seen, each divided by the size of what goes into the normalisation."""
        if self._seen is not None:  # else the layer has called it for something else
            squares = self._counted(outputs[0]).square().mean(-1, keepdim=True)
            self._add(self._seen / squares.clamp_min(_LEAST_SQUARE).sqrt().to(self._seen.device))
        self._seen = None

    def _counted(self, tensor: torch.Tensor) -> torch.Tensor:
        # Shared experts see all tokens of all texts in one dimension.
        return tensor.detach().reshape(*self._mask.shape, -1)[self._mask.to(tensor.device)].to(torch.float32)

    def _add(self, rows: torch.Tensor) -> None:
        blocks = rows.view(len(rows), len(self._total), -1).transpose(0, 1)
        self._total.baddbmm_(blocks.transpose(1, 2), blocks)


class _Sums:
    """Sums of `h h^T` over tokens, `[blocks, n, n]` per layer, in float32 beside the layer; a 0 in one without rows.

    Where the MLP's output z is normalised, of `h h^T / mean(z^2)`.
    """

    def __init__(self, model: PreTrainedModel, block_size: int, experts: str | None) -> None:
        self._model = model
        found = linear_rows(model, experts)
        self._projections = [rows.projection for rows in found]
        self._norms = [output_norm(model, rows.layer_name) for rows in found]
        self.totals = []
        for projection in self._projections:
            if not isinstance(projection, nn.Linear):
                self.totals.append(torch.zeros(1, 1, 1))
                continue
            blocks = blocks_of(projection.in_features, block_size)
            width = projection.in_features // blocks
            self.totals.append(torch.zeros(blocks, width, width, device=projection.weight.device))

    @torch.no_grad()
    def add(self, batch: list[list[int]]) -> None:
        """Add the texts of one batch."""
        length = max(map(len, batch))
        mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in batch], device=self._model.device)
        # With causal attention, padding on the right changes nothing before it; its own tokens are masked out below.
        padded = torch.tensor([ids + [ids[-1]] * (length - len(ids)) for ids in batch], device=self._model.device)
        decoder = self._model.get_decoder() if hasattr(self._model, "get_decoder") else self._model
        with self._watching(mask.bool()):
            decoder(input_ids=padded, attention_mask=mask, use_cache=False)

    @contextmanager
    def _watching(self, mask: torch.Tensor) -> Iterator[None]:
        handles = []
        for projection, norm, total in zip(self._projections, self._norms, self.totals, strict=True):
            if projection is None:
                continue
            layer = _Layer(mask, total)
            handles.append(projection.register_forward_pre_hook(layer.see if norm is not None else layer.add))
            if norm is not None:
                handles.append(norm.register_forward_pre_hook(layer.add_weighted))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def save(self, path: Path, identity: dict[str, Any], next_batch: int) -> None:
        """Keep the sums, and which batch comes next."""
        header = {"identity": json.dumps(identity), "next_batch": str(next_batch)}
        with atomic_file(path, overwrite=True) as temporary:
            save_file({str(n): total.cpu() for n, total in enumerate(self.totals)}, temporary, metadata=header)

    def add_saved(self, path: Path) -> None:
        """Add the sums that another process kept."""
        with safe_open(path, framework="pt") as file:
            for number, total in enumerate(self.totals):
                total.add_(file.get_tensor(str(number)).to(total.device))

    def resume(self, path: Path, identity: dict[str, Any], *, overwrite: bool) -> int:
        """Take over the sums of an interrupted measurement, and say which batch comes next; 0 if there was none."""
        if not path.is_file():
            return 0
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                different = changes(json.loads(header.get("identity", "{}")), identity)
                if not different:
                    for number, total in enumerate(self.totals):
                        total.copy_(file.get_tensor(str(number)))
                    return int(header["next_batch"])
        except (SafetensorError, ValueError, LookupError, RuntimeError) as error:
            different = one_line(error)
        if not overwrite:
            raise LokiError(
                f"{path} holds an interrupted measurement with other settings ({different}): repeat its command to "
                "continue it, or pass --overwrite to discard it"
            )
        return 0
