"""What an analysis has to do: the samples, how they are scored, and what the scores will be called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from loki.analysis.batches import Batch, auto_batch_size, plan_batches
from loki.analysis.options import AUTO, AnalysisOptions
from loki.analysis.work_folder import WorkFolder
from loki.artefacts.provenance import Provenance, config_digest, library_versions
from loki.calibration.samples import Sample, digest_of
from loki.calibration.sources import load_calibration
from loki.errors import LokiError
from loki.kva.prompts import up_to
from loki.kva.settings import AttributionSettings, Definition
from loki.models.architectures import max_positions
from loki.models.loading import DTYPES, pick_dtype
from loki.models.model_directory import AnyModel, ModelDirectory
from loki.ranks import Ranks

# Names given by the user, and what is told apart in other ways.
_NO_IDENTITY = ("model", "source", "versions", "stopping")


@dataclass(frozen=True)
class Job:
    """A prepared analysis.

    Attributes:
        directory: of the model.
        settings: how it is attributed.
        provenance: what the scores will come from.
        samples: what is attributed, in the order of the output.
        layers: number of decoder layers L.
        hidden: number of rows D per layer.
        options: how it is run.
        device: of this process.
    """

    directory: ModelDirectory
    settings: AttributionSettings
    provenance: Provenance
    samples: list[Sample]
    layers: int
    hidden: int
    options: AnalysisOptions
    device: torch.device

    def with_samples(self, samples: list[Sample]) -> "Job":
        """The same job on other samples."""
        provenance = replace(self.provenance, source_digest=digest_of(samples))
        return replace(self, samples=samples, provenance=provenance)

    def on(self, device: torch.device) -> "Job":
        """The same job on another device: that of another process."""
        return replace(self, device=device)

    def batches(self) -> list[Batch]:
        """The samples of every batch."""
        return plan_batches([len(sample.input_ids) for sample in self.samples], int(self.options.batch_size))

    def identity(self) -> dict[str, Any]:
        """All that decides the results to the last bit; equal identities can continue each other's work."""
        return {
            **{name: value for name, value in vars(self.provenance).items() if name not in _NO_IDENTITY},
            "samples": len(self.samples),
            "batch_size": self.options.batch_size,
            "seed": self.options.seed,
        }


def prepare(model: AnyModel, source: str, settings: AttributionSettings, ranks: Ranks, options: AnalysisOptions) -> Job:
    """Check everything that can be checked before the model is loaded, and encode the samples.

    Args:
        model: local directory or hub id.
        source: calibration data, see `load_calibration`.
        settings: definition, steps and so on.
        ranks: the processes of this run; data and weights are read by the main one.
        options: how it is run.

    Raises:
        LokiError: if the model, the data or an option cannot be used.
    """
    pick_dtype(options.dtype)
    if options.check and settings.definition is Definition.SENSITIVITY:
        raise LokiError("--check compares with Captum, which has no sensitivity: leave it out")
    if options.device_map is not None and ranks.count > 1:
        raise LokiError(
            f"--device-map {options.device_map} spreads one model over all devices, but {ranks.count} processes were "
            "started: start one, or leave it out"
        )
    own_device = ranks.device(options.device)

    def read() -> Job:
        directory = ModelDirectory.of(model, trust_remote_code=options.trust_remote_code)
        config, text = directory.config, directory.text_config
        calibration = load_calibration(
            source,
            directory.tokenizer,
            max_positions=max_positions(config),
            vocab_size=text.vocab_size,
            subjects=options.subjects,
            samples_per_subject=options.samples_per_subject,
            seed=options.seed,
        )
        _check_samples(calibration.samples, settings.position)
        saved = str(config.dtype or torch.float32).removeprefix("torch.")
        if options.dtype == AUTO and saved not in DTYPES:
            raise LokiError(f"model {model} was saved in {saved}, in which LoKI does not compute: pass --dtype float32")
        provenance = Provenance(
            model=str(model),
            model_fingerprint=directory.fingerprint,
            definition=str(settings.definition),
            steps=settings.steps if settings.definition is not Definition.SENSITIVITY else 0,
            ig_method=str(settings.ig_method),
            engine=str(settings.engine),
            quantity=settings.described_quantity,
            absolute=settings.absolute,
            position=settings.position,
            per_expert=settings.per_expert,
            dtype=saved if options.dtype == AUTO else options.dtype,
            source=calibration.source,
            source_digest=calibration.digest,
            versions=library_versions(),
            config_digest=config_digest(directory.path),
        )
        return Job(
            directory=directory,
            settings=settings,
            provenance=provenance,
            samples=calibration.samples,
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            options=options,
            device=own_device,
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
    options = job.options
    if options.batch_size == AUTO:
        lengths = [len(sample.input_ids) for sample in job.samples]
        chosen = found.get("batch_size") or auto_batch_size(lengths, job.device.type)
        options = replace(options, batch_size=chosen)
    if options.memory_budget is None:
        options = replace(options, memory_budget=found.get("memory_budget"))
    work.record({**identity, "batch_size": options.batch_size})
    return replace(job, options=options)


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
