"""All phases in one go, from a base model to a restored and verified one; a finished phase is not run again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback

from loki.artefacts.differences import changes
from loki.artefacts.run_layout import CONFIG, RUN, TRAINING
from loki.artefacts.run_records import read_record, remove_recorded, write_record
from loki.data.sources import local_paths
from loki.errors import LokiError
from loki.files import atomic_file, protect_inputs, refuse_existing
from loki.locks import held
from loki.pipeline.phases import ARTEFACTS, RunResult, Stopwatch, is_finished, remove_artefacts, run_phases
from loki.pipeline.settings import RunSettings

_FOUND = "found"  # in the record: what the training has found where the settings leave it open

# The first phase whose result depends on a setting; the rest of them concern `analyse`.
_FIRST_PHASE = {
    "protect": "create",
    "experts": "moments",
    "moments_data": "moments",
    "quota": "select",
    "selection": "select",
    "data": "train",
    "eval_data": "train",
    "data_settings": "train",
    "training": "train",
    "backend": "train",
    "levers": "train",
    "llamafactory": "train",
    "kept_and_replayed": "train",
}


def run(
    settings: RunSettings,
    output: Path,
    *,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    console: Console | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Analyse, select, create, train, restore and verify, each into its place in `output`.

    With `protect`, the second moments of the inputs are measured before the LoKI model is created.

    The same call again continues where an interrupted one stopped, within a phase too. With other settings, the phases
    that do not depend on them are kept.

    Args:
        settings: what to do.
        output: the run directory: `scores.h5`, `positions.json`, `moments.safetensors`,
            `loki_model`, `trained`, `restored`, `run.json`, and
            `run.yaml`, which the run can be repeated from.
        overwrite: do finished phases again whose settings have changed; with the same settings, start anew.
        callbacks: further Transformers callbacks for the training.
        console: where to say what is done (default: nowhere).
        progress: where to show how far a phase has come (default: nowhere).

    Raises:
        LokiError: for bad input to any phase, or if `output` holds a finished phase with other settings.
        CheckFailed: if anything but the selected rows differs in the end.
    """
    console = console or Console(quiet=True)
    base = settings.base
    record, inputs = settings.check(base).record, _inputs(settings)
    protect_inputs(output, *inputs)
    with held(output):
        _begin(settings, output, record, inputs, overwrite=overwrite, console=console)
        watch = Stopwatch(lambda line: console.print(line, highlight=False, soft_wrap=True))
        result = run_phases(settings, base, output, watch, callbacks=callbacks, console=console, progress=progress)
        _note_found(output)
        return result


def _inputs(settings: RunSettings) -> list[str | Path]:
    """What a run reads."""
    held_out = local_paths(settings.eval_data) if settings.eval_data else []
    texts = [settings.calibration, *(settings.protect_data or [])]
    inputs: list[str | Path] = [settings.model, *local_paths(settings.data), *held_out, *texts]
    if settings.data_settings.chat_template:
        inputs.append(settings.data_settings.chat_template)
    return inputs + settings.levers.inputs


def _begin(
    settings: RunSettings,
    output: Path,
    record: dict[str, Any],
    inputs: list[str | Path],
    *,
    overwrite: bool,
    console: Console,
) -> None:
    """Make the run directory ready: of what it holds, phases that depend on a changed setting go."""
    found = read_record(output, RUN)
    if found is None:
        if overwrite:
            remove_recorded(output, RUN, *inputs)
        refuse_existing(output, overwrite=False)
    else:
        found.pop(_FOUND, None)
        was, now = _flat(found), _flat(record)
        if different := changes(was, now):
            changed = [key for key in now if was.get(key) != now[key]]
            first = min(
                (_FIRST_PHASE.get(key.partition(".")[0], "analyse") for key in changed), key=list(ARTEFACTS).index
            )
            _drop_phases(output, first, different, overwrite=overwrite, console=console)
        elif overwrite:
            remove_recorded(output, RUN, *inputs)
    if found != json.loads(json.dumps(record, default=str)) or not (output / RUN).is_file():
        write_record(output, RUN, record)
    text, config = yaml.safe_dump(settings.to_dict(), sort_keys=False), output / CONFIG
    if not config.is_file() or config.read_bytes() != text.encode():
        with atomic_file(config, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _note_found(output: Path) -> None:
    """Write into a run's record with which learning rate it was trained, and for how many steps."""
    record, training = read_record(output, RUN), read_record(output / ARTEFACTS["train"], TRAINING) or {}
    found = {name: training[name] for name in ("effective_learning_rate", "steps") if name in training}
    if record is not None and record.get(_FOUND) != found:
        write_record(output, RUN, {**record, _FOUND: found})


def _drop_phases(output: Path, first: str, different: str, *, overwrite: bool, console: Console) -> None:
    """Remove what phase `first` and those after it left; a finished one only with `overwrite`.

    Raises:
        LokiError: if one is finished and may not be removed.
    """
    phases = list(ARTEFACTS)
    later = phases[phases.index(first) :]
    kept = [name for name in phases if name not in later and (output / ARTEFACTS[name]).exists()]
    stays = f"; {', '.join(kept)} will be kept" if kept else ""
    finished = [name for name in later if is_finished(output, name)]
    if finished and not overwrite:
        raise LokiError(
            f"{output} holds a run with other settings ({different}): choose another --output, or pass --overwrite "
            f"to do {', '.join(finished)} again{stays}"
        )
    remove_artefacts(output, first)
    console.print(f"changed: {different}{stays.replace('will be', 'are')}", highlight=False, soft_wrap=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names such as `training.epochs`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
