"""Comparing a model with the one it was made from: what was learned, what was lost, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loki.artefacts.positions import Positions
from loki.errors import LokiError
from loki.evaluation.forgetting import Forgetting, TaskForgetting, TaskScores, forgetting
from loki.evaluation.harness import Harness
from loki.evaluation.items import Pair, pair_tasks
from loki.evaluation.measure import (
    Loaded,
    ModelResult,
    TextResult,
    is_result,
    load,
    measure_questions,
    read_result,
)
from loki.evaluation.options import MeasureOptions
from loki.evaluation.statistics import (
    Flips,
    Interval,
    difference_interval,
    flips,
    is_binary,
    least_detectable_change,
    ratio_interval,
)
from loki.evaluation.subjects import Subject, find_subject
from loki.evaluation.verdict import KlMeasurement, Limits, TaskSize, Verdict, judge
from loki.metrics.text import text_divergence, text_loss
from loki.metrics.texts import TextSource, text_sources
from loki.metrics.tokenizers import same_tokenizer
from loki.models.model_directory import AnyModel
from loki.restoring.verify import VerifyReport, verify


@dataclass(frozen=True)
class TextComparison:
    """Two models on one text source.

    Attributes:
        name: of the source.
        base: loss of the base, in nats per token (per byte, if `per_byte`).
        new: of the new model.
        interval: of `new - base`.
        per_byte: whether the models split the text in different ways, so that only bytes can be compared.
        kl: KL(base || new); None where both models were not at hand, or split the text in different ways.
    """

    name: str
    base: float
    new: float
    interval: Interval
    per_byte: bool
    kl: KlMeasurement | None


@dataclass(frozen=True)
class TaskComparison:
    """Two models on the same items of one task.

    Attributes:
        pair: the items.
        base: mean score of the base.
        new: of the new model.
        interval: of `new - base`.
        flips: items right before and wrong after, and the other way round; None if scores are not right or wrong.
        least_detectable: the least change that so many items would show; None likewise.
        forgetting: the relative drop.
    """

    pair: Pair = field(repr=False)
    base: float
    new: float
    interval: Interval
    flips: Flips | None
    least_detectable: float | None
    forgetting: TaskForgetting

    @property
    def items(self) -> int:
        """How many."""
        return len(self.pair.before.items)


@dataclass(frozen=True)
class DataComparison:
    """Two models on training data.

    Attributes:
        base_loss: loss of the base on the completions, in nats per token.
        new_loss: of the new model.
        interval: of their difference.
        right: exact match of greedy answers.
    """

    base_loss: float
    new_loss: float
    interval: Interval
    right: TaskComparison


@dataclass(frozen=True)
class Comparison:
    """A new model beside its base.

    Attributes:
        base: name of the base.
        new: name of the new model.
        identical: whether both are known to be the same model.
        texts: one entry per text source.
        data: on training data, if any.
        tasks: one entry per task.
        forgetting: over the tasks; None if there are none.
        verified: what differs but for the selected rows; None where the rows are not known or weights not at hand.
        adapter_rows: selected rows of a LoKI adapter, which holds nothing else; None for everything else.
        verdict: on the damage.
    """

    base: str
    new: str
    identical: bool
    texts: list[TextComparison]
    data: DataComparison | None
    tasks: list[TaskComparison]
    forgetting: Forgetting | None
    verified: VerifyReport | None
    adapter_rows: int | None
    verdict: Verdict


def compare(
    base: AnyModel,
    new: Sequence[str],
    options: MeasureOptions,
    limits: Limits,
    *,
    positions: Positions | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Compare models with the one they were made from.

    Args:
        base: a model (see `loki.evaluation.subjects.find_subject`) or a result of `loki evaluate` or lm-eval.
        new: one or more of the same.
        options: what to measure.
        limits: the damage that is accepted.
        positions: the rows that may differ, where a model does not know them itself.
        seed: of the resampling.

    Raises:
        LokiError: for bad input of any kind; results that were not made in the same way are not compared.
    """
    harness = Harness(options.tasks) if options.tasks.tasks else None
    sources = text_sources(options.texts)
    trust = options.trust_remote_code
    subjects = [
        None if is_result(str(name)) else find_subject(name, positions=positions, trust_remote_code=trust)
        for name in (base, *new)
    ]
    options = replace(options, chat_template=options.chat_template or _brought_template(subjects[1:]))
    before = _take(str(base), subjects[0], options, harness)
    comparisons = []
    for name, subject in zip(new, subjects[1:], strict=True):
        after = before if subject is not None and subject == subjects[0] else None
        after = after or _take(name, subject, options, harness)
        comparisons.append(_compare(before, after, sources, options, limits, seed))
        del after  # before the next model is loaded
    return comparisons


def _brought_template(new: Sequence[Subject | None]) -> str | None:
    """The chat template in the first new model's own folder: what it was trained with, its base may lack."""
    folders = (subject.adapter or subject.model.path for subject in new if subject is not None)
    files = (folder / "chat_template.jinja" for folder in folders)
    return next((str(file) for file in files if file.is_file()), None)


@dataclass(frozen=True)
class _Side:
    """One model: its result, and the model itself where it is at hand."""

    result: ModelResult
    loaded: Loaded | None
    subject: Subject | None


def _take(
    name: str,
    subject: Subject | None,
    options: MeasureOptions,
    harness: Harness | None,
) -> _Side:
    if subject is None:
        return _Side(read_result(Path(name), options), None, None)
    loaded = load(subject, options)
    return _Side(measure_questions(loaded, options, harness), loaded, subject)


def _compare(
    before: _Side, after: _Side, sources: list[TextSource], options: MeasureOptions, limits: Limits, seed: int
) -> Comparison:
    names = (before.result.name, after.result.name)
    identical = bool(before.result.fingerprint) and before.result.fingerprint == after.result.fingerprint
    texts = _texts(before, after, sources, options)
    pairs = list(pair_tasks(before.result.tasks, after.result.tasks, names=names))
    lost = None
    if pairs:
        scores = {pair.before.task: _task_scores(pair) for pair in pairs}
        lost = forgetting(scores, identical=identical, seed=seed)
    tasks = [compare_pair(pair, lost.tasks[pair.before.task], identical=identical, seed=seed) for pair in pairs if lost]
    kls = [text.kl for text in texts if text.kl is not None]
    sizes = {
        pair.before.task: TaskSize(
            len(pair.before.items),
            float(pair.before.scores.mean()),
            int((pair.before.scores != pair.after.scores).sum()),
        )
        for pair in pairs
    }
    verdict = judge(limits, kls, lost, sizes)
    return Comparison(
        *names,
        identical,
        texts,
        _data(before.result, after.result, seed),
        tasks,
        lost,
        _verified(before.subject, after.subject),
        _adapter_rows(after.subject),
        verdict,
    )


def _texts(before: _Side, after: _Side, sources: list[TextSource], options: MeasureOptions) -> list[TextComparison]:
    if before.loaded and after.loaded:
        return [_both(before.loaded, after.loaded, source, options) for source in sources]
    found = []
    for source in sources:
        first, second = (_text_result(side, source, options) for side in (before, after))
        if first and second:
            found.append(_from_results(source.name, first, second))
    return found


def _text_result(side: _Side, source: TextSource, options: MeasureOptions) -> TextResult | None:
    """The loss on a source: measured now, or found in the result; None where the result is of other text."""
    if side.loaded:
        loss = text_loss(side.loaded.model, side.loaded.tokenizer, source.texts, window=options.window)
        return TextResult.of(source, loss, options.window)
    found = side.result.texts.get(source.name)
    return found if found and (found.digest, found.window) == (source.digest, options.window) else None


def _both(base: Loaded, new: Loaded, source: TextSource, options: MeasureOptions) -> TextComparison:
    if not same_tokenizer(base.tokenizer, new.tokenizer, source.texts):
        results = [
            TextResult.of(
                source, text_loss(one.model, one.tokenizer, source.texts, window=options.window), options.window
            )
            for one in (base, new)
        ]
        return _from_results(source.name, results[0], results[1], per_byte=True)
    found = text_divergence(base.model, new.model, base.tokenizer, source.texts, window=options.window)
    tokens = found.base.windows.tokens.double().numpy()
    neighbours = len(tokens) > len(source.texts)
    interval = ratio_interval(found.kl.numpy(), tokens, neighbours=neighbours, logarithmic=True)
    kl = KlMeasurement(source.name, found.kl_per_token, interval, len(tokens), int(tokens.sum()))
    rise = ratio_interval((found.new.nll - found.base.nll).numpy(), tokens, neighbours=neighbours)
    return TextComparison(source.name, found.base.loss, found.new.loss, rise, False, kl)


def _from_results(name: str, base: TextResult, new: TextResult, *, per_byte: bool | None = None) -> TextComparison:
    """Without KL. Windows are paired where both models made the same of the text, else whole texts by their bytes."""
    if per_byte is None:
        per_byte = base.tokens != new.tokens
    if per_byte:
        sizes, first, second = base.bytes, base.nll_by_text, new.nll_by_text
        losses = (base.loss_per_byte, new.loss_per_byte)
    else:
        sizes, first, second = base.tokens, base.nll, new.nll
        losses = (base.loss, new.loss)
    neighbours = len(sizes) > len(base.bytes)
    interval = ratio_interval(np.subtract(second, first), np.array(sizes, dtype=np.float64), neighbours=neighbours)
    return TextComparison(name, *losses, interval, per_byte, None)


def compare_pair(pair: Pair, lost: TaskForgetting, *, identical: bool = False, seed: int = 0) -> TaskComparison:
    """Two models on one task, item by item."""
    first, second = pair.before.scores, pair.after.scores
    marks = is_binary(first) and is_binary(second)
    found = flips(first, second) if marks else None
    least = least_detectable_change(len(first), len(found.lost) + len(found.gained)) if found else None
    interval = Interval(0.0, 0.0) if identical else difference_interval(first, second, seed=seed)
    return TaskComparison(pair, float(first.mean()), float(second.mean()), interval, found, least, lost)


def _data(before: ModelResult, after: ModelResult, seed: int) -> DataComparison | None:
    if before.data is None or after.data is None:
        return None
    tasks = [{"data": replace(result.data.items, task="data")} for result in (before, after) if result.data]
    pair = next(pair_tasks(tasks[0], tasks[1], names=(before.name, after.name)))
    right = compare_pair(pair, TaskForgetting(None, None, "what is to be learned"), seed=seed)
    if before.data.tokens != after.data.tokens:
        raise LokiError(
            f"{before.name} and {after.name} split the data into different tokens, so losses cannot be compared: "
            "use models with the same tokenizer, or leave out --data"
        )
    rise = np.subtract(after.data.nll, before.data.nll)
    interval = ratio_interval(rise, np.array(before.data.tokens, dtype=np.float64))
    return DataComparison(before.data.loss, after.data.loss, interval, right)


def _task_scores(pair: Pair) -> TaskScores:
    return TaskScores(pair.before.scores, pair.after.scores, pair.before.chance, pair.before.higher_is_better)


def _verified(base: Subject | None, new: Subject | None) -> VerifyReport | None:
    if base is None or new is None or new.positions is None or base.adapter:
        return None
    # A LoKI adapter holds selected rows and nothing else, so what it stands on must be the base, in every row.
    may_differ = new.positions if new.adapter is None else [[] for _ in new.positions]
    return verify(base.model, new.model, may_differ)


def _adapter_rows(new: Subject | None) -> int | None:
    if new is None or new.adapter is None or new.positions is None:
        return None
    return sum(map(len, new.positions))
