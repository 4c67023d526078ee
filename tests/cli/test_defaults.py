"""Defaults that the command line has to repeat, as the modules they stand in take long to import, are the library's."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from loki.analysis.analyse import DEFAULT_QUOTAS
from loki.cli.ablate import ablate
from loki.cli.analyse import analyse
from loki.cli.compare import compare
from loki.cli.parsing import parse_numbers, parse_quotas
from loki.cli.scale import scale
from loki.cli.training_options import LeverOptions
from loki.evaluation.ablation import AblationOptions
from loki.evaluation.scale_sweep import DEFAULT_SCALES, sweep_scales
from loki.evaluation.verdict import Limits
from loki.implanting.training.levers import Levers


def default(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


@pytest.mark.parametrize("name", vars(LeverOptions()))
def test_levers(name: str) -> None:
    assert getattr(LeverOptions(), name) == getattr(Levers(), name)


def test_others() -> None:
    assert tuple(parse_numbers(default(scale, "scales"))) == DEFAULT_SCALES
    assert default(scale, "tolerance") == default(sweep_scales, "tolerance")
    assert tuple(parse_quotas(default(ablate, "quotas"))) == AblationOptions().quotas
    assert tuple(parse_quotas(default(analyse, "quota"))) == DEFAULT_QUOTAS
    assert default(compare, "max_drop") == f"{Limits().max_drop:g}%"
    assert default(compare, "max_kl") == Limits().max_kl
