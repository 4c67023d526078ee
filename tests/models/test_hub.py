"""Fetching snapshots and uploading directories; whatever keeps either from being done is one line."""

import errno
import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

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


def test_a_directory_is_uploaded_in_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "restored"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "sub").mkdir()
    (folder / "sub" / "notice.txt").write_text("yours\n")
    with fake_hub(monkeypatch) as received:
        address = hub.upload(folder, "me/model", private=True)
    assert address.endswith("/me/model")
    assert received["created"] == {"name": "model", "organization": "me", "private": True}
    assert received["files"] == {"config.json": b'{"model_type": "llama"}', "sub/notice.txt": b"yours\n"}


def test_a_refused_upload_says_how_to_do_it_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    with fake_hub(monkeypatch, status=400), pytest.raises(LokiError, match=r"not uploaded to me/model .*hf upload me"):
        hub.upload(tmp_path, "me/model")


def test_uploading_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(LokiError, match="a/b/c is no hub id"):
        hub.check_upload("a/b/c")
    with pytest.raises(LokiError, match="logged in"):
        hub.check_upload("me/model")


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, status: int = 200) -> Iterator[dict[str, Any]]:
    """A hub on this machine that takes small files, as the real one does; what it was sent."""
    received: dict[str, Any] = {"files": {}}

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.path.endswith("/repos/create"):
                given = json.loads(body)
                private = given.get("private") or given.get("visibility") == "private"  # earlier and later releases
                received["created"] = {**{name: given[name] for name in ("name", "organization")}, "private": private}
                self.answer({"url": f"{address}/me/model"}, status)
            elif "/preupload/" in self.path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self.answer({"files": files})
            else:
                for entry in map(json.loads, body.splitlines()):
                    if entry["key"] == "file":
                        received["files"][entry["value"]["path"]] = b64decode(entry["value"]["content"])
                self.answer({"commitUrl": f"{address}/me/model/commit/0", "commitOid": "0", "success": True})

        def do_GET(self) -> None:
            self.answer({"id": "me/model", "siblings": [], "sha": "0"})

        def answer(self, value: Any, code: int = 200) -> None:
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
