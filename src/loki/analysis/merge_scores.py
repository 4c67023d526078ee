"""Joining scores files from separate machines."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loki.analysis.assemble import copy_samples
from loki.artefacts.provenance import combined_provenance
from loki.artefacts.scores import ScoresReader, ScoresWriter
from loki.errors import LokiError
from loki.files import atomic_file, protect_inputs, refuse_existing_file


def merge_scores(parts: Sequence[Path], output: Path, *, overwrite: bool = False) -> int:
    """Write all samples of several scores files to one, in the order of the files.

    Args:
        parts: at least two scores files, of the same model, definition, steps and other settings.
        output: the file to write.
        overwrite: replace an existing file.

    Returns:
        The number of samples in the new file.

    Raises:
        LokiError: if the files do not belong together (the text names the difference), hold the same sample twice, do
            not say how they were made, or are damaged; or if `output` exists and `overwrite` is False.
    """
    if len(parts) < 2:
        raise LokiError(f"there is nothing to merge: give two scores files or more, not {len(parts)}")
    refuse_existing_file(output, overwrite=overwrite)
    protect_inputs(output, *parts)
    with ExitStack() as stack:
        readers = [stack.enter_context(ScoresReader(part)) for part in parts]
        provenances = []
        for reader in readers:
            if reader.provenance is None:
                raise LokiError(
                    f"{reader.path} does not say how its scores were made, so it cannot be merged: analyse again"
                )
            provenances.append(reader.provenance)
        for reader, provenance in zip(readers[1:], provenances[1:], strict=True):
            _check_belongs(readers[0], reader, provenances[0].differences(provenance))
        _check_distinct(readers)
        with (
            atomic_file(output, overwrite=overwrite) as temporary,
            ScoresWriter(temporary, readers[0].layers, readers[0].hidden, combined_provenance(provenances)) as writer,
        ):
            for reader in readers:
                copy_samples(reader, writer)
        return sum(reader.samples for reader in readers)


def _check_belongs(first: ScoresReader, other: ScoresReader, different: list[str]) -> None:
    shapes = [f"{reader.layers} layers of {reader.hidden} rows" for reader in (first, other)]
    if shapes[0] != shapes[1]:
        different = [*different, " and ".join(shapes)]
    if different:
        raise LokiError(
            f"{first.path} and {other.path} cannot be merged: they differ in {'; '.join(different)}: "
            "analyse all parts with the same model and settings"
        )


def _check_distinct(readers: Sequence[ScoresReader]) -> None:
    origin: dict[str, Path] = {}
    for reader in readers:
        for sample in reader.records.sample_ids:
            if sample in origin:
                raise LokiError(f"sample {sample} is in {origin[sample]} and in {reader.path}: give every sample once")
            origin[sample] = reader.path
