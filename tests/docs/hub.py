"""A hub that needs no network: what the pages name is in the cache."""

from pathlib import Path

import pytest

from tests.calibration.mmlu_copies import hub_only_all


def offer_mmlu(cache: Path) -> Path:
    """Put a very small MMLU into a hub cache, as a download would."""
    folder = cache / "datasets--cais--mmlu"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    hub_only_all(folder / "snapshots" / ("0" * 40))
    return cache


def use_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
