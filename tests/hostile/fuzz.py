"""How much hostile input goes wrong: `python -m tests.hostile.fuzz --inputs 2500` prints a table by kind."""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.hostile.kinds import KINDS, Case, Kind
from tests.hostile.originals import import_everything, make_originals
from tests.hostile.trying import Tried, try_case


def fuzz(kind: Kind, originals: Path, scratch: Path, inputs: int, *, start: int = 0) -> list[Tried]:
    """Try `inputs` different edits of a kind; the same ones for the same `start`."""
    tried: dict[tuple[str, tuple[object, ...]], Tried] = {}

    @seed(start)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.cases(originals))
    def try_one(case: Case) -> None:
        if (case.what, case.command) not in tried:
            tried[case.what, case.command] = try_case(originals, scratch, case, outputs=kind.outputs)

    try_one()
    return list(tried.values())


def main(inputs: int, names: list[str], *, start: int = 0) -> int:
    """Fuzz every kind, or those named; returns the number of wrong inputs."""
    import_everything()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="loki-hostile-") as folder:
        originals = make_originals(Path(folder, "originals"))
        kinds = [kind for kind in KINDS if not names or kind.name in names]
        for kind in kinds:
            tried = fuzz(kind, originals, Path(folder, "scratch"), max(1, inputs // len(kinds)), start=start)
            wrong = [one for one in tried if one.outcome.problem]
            total += Counter(tried=len(tried), wrong=len(wrong))
            print(f"{kind.name:<26} {len(tried):>5} tried {len(wrong):>5} wrong", flush=True)
            for one in wrong:
                print(f"    {one}", flush=True)
    print(f"{'all':<26} {total['tried']:>5} tried {total['wrong']:>5} wrong")
    return total["wrong"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Try hostile inputs of every kind, and print what goes wrong.")
    parser.add_argument("kinds", nargs="*", help=f"{', '.join(kind.name for kind in KINDS)}; without one, all of them")
    parser.add_argument("--inputs", type=int, default=2500, help="how many to try in all (default: 2500)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    asked = parser.parse_args()
    sys.exit(bool(main(asked.inputs, asked.kinds, start=asked.seed)))
