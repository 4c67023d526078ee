"""Fixtures of the tests with several processes."""

import pytest


@pytest.fixture(autouse=True)
def _needs_deepspeed(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("deepspeed"):
        pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`: `make test-slow` installs it")
