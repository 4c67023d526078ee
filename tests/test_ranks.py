"""What one process tells the others, with the messages between them replaced."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
import torch

from loki.errors import CheckFailed, LokiError
from loki.kva.attributor import NotExactError
from loki.kva.prompts import PromptError
from loki.ranks import Ranks, pick_device


class UnpicklableError(Exception):
    def __reduce__(self) -> str:
        raise TypeError("not this one")


class Messages:
    """Stands in for the broadcasts and gathers between two processes that run one after the other: 1 first, or 0."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def broadcast(self, objects: list[Any]) -> None:
        if self.sent:
            objects[:] = self.sent
        else:
            self.sent = list(objects)

    def gather(self, objects: list[Any]) -> list[Any]:
        self.sent += objects
        return self.sent


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Messages:
    found = Messages()
    monkeypatch.setattr("loki.ranks.broadcast_object_list", found.broadcast)
    monkeypatch.setattr("loki.ranks.gather_object", found.gather)
    return found


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


ERRORS = [
    (LokiError("one line"), 2),
    (CheckFailed("differs"), 1),
    (NotExactError("it shifts"), 2),
    (PromptError(3, "too long"), 2),
    (OSError(errno.ENOSPC, "No space left on device", "batch.npz"), 2),
    (torch.OutOfMemoryError("out of memory"), 2),
    (UnpicklableError("odd"), 2),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_a_failure_of_the_main_process_reaches_all(messages: Messages, error: Exception, code: int) -> None:
    with pytest.raises(type(error)) as raised:
        Ranks(0, 2).on_main(failing(error))
    assert raised.value is error
    with pytest.raises(SystemExit) as left:
        Ranks(1, 2).on_main(failing(AssertionError("only the main process calls it")))
    assert left.value.code == code


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_a_failure_of_another_process_is_raised_in_the_main_one(
    messages: Messages, error: Exception, code: int
) -> None:
    with pytest.raises(SystemExit) as left:
        Ranks(1, 2).on_all(failing(error))
    assert left.value.code == code
    with pytest.raises(RuntimeError if isinstance(error, UnpicklableError) else type(error)) as raised:
        Ranks(0, 2).on_all(lambda: "done")
    assert str(error) in str(raised.value)
    notes = "".join(getattr(raised.value, "__notes__", []))
    assert ("in process 1:" in notes) == (not isinstance(error, LokiError | UnpicklableError))


def test_results(messages: Messages) -> None:
    assert Ranks(0, 2).on_main(lambda: "of the main") == "of the main"
    assert Ranks(1, 2).on_main(lambda: "of another") == "of the main"
    messages.sent = []
    assert [Ranks(rank, 2).on_all(lambda: "own") for rank in (1, 0)] == ["own", "own"]


def test_one_process_alone_sends_nothing() -> None:
    alone = Ranks(0, 1)
    assert (alone.on_main(lambda: 1), alone.on_all(lambda: 2)) == (1, 2)
    for call in (alone.on_main, alone.on_all):
        with pytest.raises(OSError, match="any"):
            call(failing(OSError("any")))


@pytest.mark.parametrize("device", ["meta", "xpu", "cpu:3", "cuda:", "cuda:-1", "cuda:01", "gpu-of-mine", ""])
def test_devices_that_were_never_tried(device: str) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(LokiError, match=f"--device {device} .*cuda:N"):
        pick_device(device)


def test_an_apple_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    with pytest.raises(LokiError, match=r"--device mps: .* no Apple GPU"):
        pick_device("mps")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert pick_device() == pick_device("mps") == torch.device("mps")


def test_cuda_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [pick_device(name) for name in ("auto", "cuda:1")] == [torch.device("cuda"), torch.device("cuda:1")]
    for name in ("cuda:2", "cuda:300"):
        with pytest.raises(LokiError, match=f"{name}: .* 2 CUDA devices"):
            pick_device(name)
