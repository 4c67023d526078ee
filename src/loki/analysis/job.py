"""What an analysis has to do: the samples, how they are scored, and what the scores will be called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from loki.analysis.batches import Batch, auto_batch_size, plan_batches
from loki.analysis.work_folder import AUTO, WorkFolder
from loki.artefacts.provenance import Provenance, config_digest, library_versions
from loki.calibration.samples import Sample, digest_of
from loki.calibration.sources import load_calibration
from loki.errors import LokiError
from loki.kva.prompts import up_to
from loki.kva.settings import AttributionSettings
from loki.models.architectures import max_positions, text_config
from loki.models.checkpoint import fingerprint
from loki.models.loading import DTYPES, load_config, load_tokenizer, pick_dtype, resolve_model
from loki.ranks import Ranks

# Names given by the user, and what is told apart in other ways.
_NO_IDENTITY = ("model", "source", "versions", "stopping")


class JobOptions(TypedDict, total=False):
    """The keyword arguments of `prepare`; every one may be left out."""

    batch_size: int | str
    dtype: str
    device: str
    device_map: str | None
    subjects: Sequence[str] | None
    samples_per_subject: int | None
    seed: int
    check: int
    memory_budget: int | None
    trust_remote_code: bool


@dataclass(frozen=True)
class Job:
    """A prepared analysis.

    Attributes:
        directory: local directory of the model.
        settings: how it is attributed.
        provenance: what the scores will come from.
        samples: what is attributed, in the order of the output.
        layers: number of decoder layers L.
        hidden: number of rows D per layer.
        batch_size: samples per batch, or `auto`.
        device: of this process.
        device_map: how Transformers spreads the model over devices; None for `device` alone.
        seed: of the order of work and of the samples to check.
        check: number of samples to recompute with Captum.
        memory_budget: bytes the engine may use beside the model; None for what is free.
        trust_remote_code: run Python code that the model directory brings along.
    """

    directory: Path
    settings: AttributionSettings
    provenance: Provenance
    samples: list[Sample]
    layers: int
    hidden: int
    batch_size: int | str
    device: torch.device
    device_map: str | None
    seed: int
    check: int
    memory_budget: int | None
    trust_remote_code: bool

    def with_samples(self, samples: list[Sample]) -> "Job":
        """The same job on other samples."""
        provenance = replace(self.provenance, source_digest=digest_of(samples))
        return replace(self, samples=samples, provenance=provenance)

    def on(self, device: torch.device) -> "Job":
        """The same job on another device: that of another process."""
        return replace(self, device=device)

    def batches(self) -> list[Batch]:
        """The samples of every batch."""
        return plan_batches([len(sample.input_ids) for sample in self.samples], int(self.batch_size))

    def identity(self) -> dict[str, Any]:
        """All that decides the results to the last bit; equal identities can continue each other's work."""
        return {
            **{name: value for name, value in vars(self.provenance).items() if name not in _NO_IDENTITY},
            "samples": len(self.samples),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


def prepare(
    model: str | Path,
    source: str,
    settings: AttributionSettings,
    ranks: Ranks,
    *,
    batch_size: int | str = AUTO,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    subjects: Sequence[str] | None = None,
    samples_per_subject: int | None = None,
    seed: int = 0,
    check: int = 0,
    memory_budget: int | None = None,
    trust_remote_code: bool = False,
) -> Job:
    """Check everything that can be checked before the model is loaded, and encode the samples.

    Args:
        model: local directory or hub id.
        source: calibration data, see `load_calibration`.
        settings: definition, steps and so on.
        ranks: the processes of this run; data and weights are read by the main one.
        batch_size: samples per batch; `auto` chooses by prompt length and device.
        dtype: type to compute in, a name in `DTYPES`; `auto` is the type the checkpoint was saved in.
        device: `auto` (a GPU if there is one), `cpu` or `cuda`.
        device_map: `auto` spreads the model over all devices, instead of `device`.
        subjects: analyse these subjects only (default: all).
        samples_per_subject: draw so many samples of every subject (default: all).
        seed: of that draw, of the order of work, and of the samples to check.
        check: recompute so many randomly chosen samples with Captum, and fail if they differ.
        memory_budget: bytes the engine may use beside the model (default: what is free).
        trust_remote_code: run Python code that the model directory brings along.

    Raises:
        LokiError: if the model, the data or an option cannot be used.
    """
    if batch_size != AUTO and (isinstance(batch_size, str) or batch_size < 1):
        raise LokiError(f"batch size {batch_size} makes no sense: give a positive number, or auto")
    pick_dtype(dtype)
    if check < 0:
        raise LokiError(f"cannot check {check} samples: give a number of samples, or 0 for none")
    if device_map is not None and ranks.count > 1:
        raise LokiError(
            f"--device-map {device_map} spreads one model over all devices, but {ranks.count} processes were started: "
            "start one, or leave it out"
        )
    own_device = ranks.device(device)

    def read() -> Job:
        directory = resolve_model(model)
        config = load_config(directory, trust_remote_code=trust_remote_code)
        text = text_config(config)
        calibration = load_calibration(
            source,
            load_tokenizer(directory, trust_remote_code=trust_remote_code),
            max_positions=max_positions(config),
            vocab_size=text.vocab_size,
            subjects=subjects,
            samples_per_subject=samples_per_subject,
            seed=seed,
        )
        _check_samples(calibration.samples, settings.position)
        saved = str(config.dtype or torch.float32).removeprefix("torch.")
        if dtype == AUTO and saved not in DTYPES:
            raise LokiError(f"model {model} was saved in {saved}, in which LoKI does not compute: pass --dtype float32")
        provenance = Provenance(
            model=str(model),
            model_fingerprint=fingerprint(directory),
            definition=settings.definition,
            steps=settings.steps,
            ig_method=settings.ig_method,
            engine=settings.engine,
            quantity=settings.quantity,
            absolute=settings.absolute,
            position=settings.position,
            dtype=saved if dtype == AUTO else dtype,
            source=calibration.source,
            source_digest=calibration.digest,
            versions=library_versions(),
            config_digest=config_digest(directory),
        )
        return Job(
            directory=directory,
            settings=settings,
            provenance=provenance,
            samples=calibration.samples,
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            batch_size=batch_size,
            device=own_device,
            device_map=device_map,
            seed=seed,
            check=check,
            memory_budget=memory_budget,
            trust_remote_code=trust_remote_code,
        )

    return ranks.on_main(read).on(own_device)


def begin(job: Job, work: WorkFolder, identity: Mapping[str, Any], *, overwrite: bool) -> Job:
    """Start or continue a run in its work folder, in the main process.

    Args:
        job: what is to be computed.
        work: the folder, held by this process.
        identity: what has to agree with an interrupted run; at least `job.identity()`.
        overwrite: discard an interrupted run that does not agree.

    Returns:
        The job with a batch size: its own, that of the interrupted run, or one chosen now. Also with the interrupted
        run's memory budget, unless it has its own: the engine's groups, and with them the last bits, depend on it.

    Raises:
        LokiError: if an interrupted run does not agree; the text names the differences.
    """
    found = work.begin(identity, overwrite=overwrite)
    if job.batch_size == AUTO:
        lengths = [len(sample.input_ids) for sample in job.samples]
        job = replace(job, batch_size=found.get("batch_size") or auto_batch_size(lengths, job.device.type))
    if job.memory_budget is None:
        job = replace(job, memory_budget=found.get("memory_budget"))
    work.record({**identity, "batch_size": job.batch_size})
    return job


def _check_samples(samples: Sequence[Sample], position: int) -> None:
    """Refuse before anything is computed what could not be attributed or written afterwards."""
    for sample in samples:
        try:
            up_to(sample.input_ids, position, f"sample {sample.id}")
        except LokiError as error:
            raise LokiError(f"{error}: choose another --position, or leave the sample out") from error
        for name, text in (("id", sample.id), ("subject", sample.subject)):
            if "\0" in text or not _is_unicode(text):
                raise LokiError(
                    f"sample {sample.id!r}: its {name} {text!r} holds a null character or half a surrogate pair, which "
                    "a scores file cannot hold: change it in the data"
                )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
