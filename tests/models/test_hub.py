"""Whatever keeps a snapshot from being fetched is one line."""

import errno
from importlib import import_module

import pytest
from huggingface_hub import errors

from loki.errors import LokiError
from loki.models import hub
from loki.models.loading import resolve_model

http = import_module(errors.HTTPError.__module__.partition(".")[0])  # httpx, or httpx2 in later releases


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", download)


@pytest.mark.parametrize(
    "error",
    [
        http.ProxyError("503 Service Unavailable"),
        http.ReadError("connection reset"),
        http.InvalidURL("no such scheme"),
        ValueError("Unknown scheme for proxy URL"),
        RuntimeError("Data processing error: CAS service error"),  # of hf_xet
        errors.HFValidationError("no repository name"),
        errors.LocalEntryNotFoundError("not in the cache"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(LokiError, match=rf"nobody/model .*\({type(error).__name__}\)"):
        resolve_model("nobody/model")


def test_a_full_disk_is_not_the_networks_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        resolve_model("nobody/model")
