"""What the benchmark of KVA says: its figures, what was aimed at, and whether that was reached."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kva_shapes import Shape

from loki.report.table import ResultTable

PAPER_SPEEDUP = 60
PAPER_FORWARDS = 2.3
OUTSIDE = 0.05
GROWTH = 1.1  # time per prompt of many prompts over that of one
TWO_PROCESSES = 1.8


@dataclass(frozen=True)
class Result:
    """What was measured on one shape; times in seconds per prompt, memory in MiB beside the model.

    Attributes:
        paper_forwards: price of a prompt under `paper`, in forward passes of the prompt.
        gap_captum: relative error of the engine's scores against Captum as published, definition `captum`.
        gap_paper: the same under `paper`, against Captum's IntegratedGradients of the last position, on a short prompt.
        linear_captum: seconds per prompt, by the number of prompts that went through the engine together.
        linear_paper: likewise.
        rate_captum: prompts per second of the most of them together.
        rate_paper: likewise.
        outside_captum: part of a whole analysis's time in which no tensor operation runs: in the engine, in storing the
            batches, and in writing the scores file.
        outside_paper: likewise.
        matrix_rate: part of the device's matrix rate that the engine reaches (definition `captum`).
    """

    shape: str
    threads: int
    forward: float
    captum: float
    engine_captum: float
    engine_paper: float
    speedup_captum: float
    speedup_paper: float
    paper_forwards: float
    gap_captum: float
    gap_paper: float
    linear_captum: dict[int, float]
    linear_paper: dict[int, float]
    rate_captum: float
    rate_paper: float
    memory_captum: float
    memory_paper: float
    outside_captum: float
    outside_paper: float
    matrix_rate: float


@dataclass(frozen=True)
class Target:
    """A figure, and the least or the most that it may be."""

    name: str
    value: float
    bound: float
    at_most: bool = True
    percent: bool = False

    @property
    def reached(self) -> bool:
        """Whether the target is reached."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def cells(self) -> list[str]:
        """The row of a table."""
        value, bound = (f"{n:.2%}" if self.percent else f"{n:.3g}" for n in (self.value, self.bound))
        return [self.name, f"{'<=' if self.at_most else '>='} {bound}", value, "yes" if self.reached else "no"]


def targets(results: Sequence[Result], shapes: dict[str, Shape], two_processes: float | None) -> list[Target]:
    """What was aimed at, and what came out."""
    found = [target for result in results for target in _targets(result, shapes[result.shape])]
    if two_processes is not None:
        name = "two processes on two cores, samples/s of one single-threaded process"
        found.append(Target(name, two_processes, TWO_PROCESSES, at_most=False))
    return found


def _targets(r: Result, shape: Shape) -> Iterator[Target]:
    where = f"{r.shape}, {r.threads} {'thread' if r.threads == 1 else 'threads'}: "
    yield Target(where + "captum, times as fast as Captum", r.speedup_captum, shape.speedup, at_most=False)
    yield Target(where + "paper, times as fast as Captum", r.speedup_paper, PAPER_SPEEDUP, at_most=False)
    yield Target(where + "paper, forward passes", r.paper_forwards, PAPER_FORWARDS)
    for definition, gap, seconds, outside, linear in (
        ("captum", r.gap_captum, r.engine_captum, r.outside_captum, r.linear_captum),
        ("paper", r.gap_paper, r.engine_paper, r.outside_paper, r.linear_paper),
    ):
        yield Target(f"{where}{definition}, relative error", gap, shape.gap)
        yield Target(f"{where}{definition}, time outside the model", outside, OUTSIDE, percent=True)
        if len(linear) > 1:
            few, many = min(linear), max(linear)
            growth = linear[many] / linear[few]
            yield Target(f"{where}{definition}, time per prompt of {many} over {few}", growth, GROWTH)
        if shape.seconds:
            yield Target(f"{where}{definition}, seconds", seconds, shape.seconds[definition == "paper"])


def target_table(found: Sequence[Target]) -> ResultTable:
    """The targets for people."""
    return ResultTable("Targets", ["what", "target", "measured", "reached"], [target.cells() for target in found])


def tables(results: Sequence[Result]) -> list[ResultTable]:
    """The figures for people."""
    speed, cost = [], []
    for r in results:
        seconds = (r.forward, r.captum, r.engine_captum, r.engine_paper)
        speed.append(
            [
                f"{r.shape}, {r.threads}",
                *(f"{value:.3g} s" for value in seconds),
                *(f"{factor:.3g}x" for factor in (r.speedup_captum, r.speedup_paper)),
                f"{r.paper_forwards:.3g}",
                *(f"{gap:.1e}" for gap in (r.gap_captum, r.gap_paper)),
            ]
        )
        for definition, rate, memory, outside, linear in (
            ("captum", r.rate_captum, r.memory_captum, r.outside_captum, r.linear_captum),
            ("paper", r.rate_paper, r.memory_paper, r.outside_paper, r.linear_paper),
        ):
            cost.append(
                [
                    f"{r.shape}, {r.threads}, {definition}",
                    f"{rate:.3g}",
                    f"{memory:.0f}",
                    f"{outside:.2%}",
                    f"{r.matrix_rate:.0%}" if definition == "captum" else "",
                    ", ".join(f"{count}: {value:.3g} s" for count, value in linear.items()),
                ]
            )
    names = ["shape, threads", "forward", "Captum", "captum", "paper", "captum", "paper", "forwards"]
    return [
        ResultTable("Per prompt: times, beside Captum, errors", [*names, "error", "(paper)"], speed),
        ResultTable(
            "Many prompts",
            [
                "shape, threads, definition",
                "samples/s",
                "MiB",
                "outside",
                "matrix rate",
                "per prompt, by number together",
            ],
            cost,
        ),
    ]
