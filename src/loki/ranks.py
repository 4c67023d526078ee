"""The processes of a data-parallel run, as `accelerate launch` or `torchrun` starts them."""

import atexit
import os
import pickle
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from loki.errors import LokiError

_PATIENCE = timedelta(days=7)  # ranks may finish their shares of an analysis hours apart

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run.

    Attributes:
        index: number of this process, 0 for the main one.
        count: number of processes.
    """

    index: int
    count: int

    @classmethod
    def current(cls, patience: timedelta = _PATIENCE) -> "Ranks":
        """Join the processes that were started together; a process on its own is rank 0 of 1.

        Args:
            patience: how long to wait for another process before giving up.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1)
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=patience)
        atexit.unregister(_part)
        atexit.register(_part)
        return cls(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the main process: the only one that prints and writes outputs."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Call `function` in the main process and return its result in every process.

        Raises:
            Exception: in the main process, whatever `function` raises; the other processes exit quietly.
        """
        if self.count == 1:
            return function()
        outcome: list[tuple[Result | None, Exception | None]] = [(None, None)]
        if self.main:
            try:
                outcome = [(function(), None)]
            except Exception as error:  # the others wait for the outcome, whatever it is
                outcome = [(None, _portable(error, self.index))]
                broadcast_object_list(outcome)
                raise
        broadcast_object_list(outcome)
        result, failed = outcome[0]
        if failed is not None:
            self.raise_once(failed)
        return result  # type: ignore[return-value]

    def on_all(self, function: Callable[[], Result]) -> Result:
        """Call `function` in every process and return this process's result, unless it failed in one.

        Raises:
            Exception: in the main process, the first that `function` raised in any; the other processes exit quietly.
        """
        if self.count == 1:
            return function()
        result: Result | None = None
        failed: Exception | None = None
        try:
            result = function()
        except Exception as error:  # the others wait for the outcome, whatever it is
            failed = error
        portable = _portable(failed, self.index) if failed else None
        failures = [failure for failure in gather_object([portable]) if failure is not None]
        if failures:
            self.raise_once(failed or failures[0])
        return result  # type: ignore[return-value]

    def raise_once(self, error: Exception) -> NoReturn:
        """Raise an error that every process has, or knows of, in the main one.

        Raises:
            Exception: in the main process; the others exit quietly, with the code of a `LokiError`.
        """
        if self.main:
            raise error
        raise SystemExit(getattr(error, "exit_code", LokiError.exit_code))

    def device(self, name: str) -> torch.device:
        """The device of this process for `--device`: `auto` and `cuda` mean one GPU per process.

        Raises:
            LokiError: if there is no such device.
        """
        device = pick_device(name)
        if device.type == "cuda" and device.index is None and self.count > 1:
            return torch.device("cuda", PartialState().local_process_index % torch.cuda.device_count())
        return device


def pick_device(device: str = "auto") -> torch.device:
    """`cuda` or `mps` if there is one, else `cpu`; `cpu`, `mps`, `cuda` and `cuda:N` are taken as they are.

    Raises:
        LokiError: if a device is asked for that this machine has not, or the name means no device of these.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:(0|[1-9][0-9]*))?", device):
        raise LokiError(f"--device {device} is not supported: use auto, cpu, mps, cuda or cuda:N")
    if device == "mps" and not torch.backends.mps.is_available():
        raise LokiError("--device mps: this machine has no Apple GPU that PyTorch can use: use auto or cpu")
    kind, _, index = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise LokiError(f"--device {device}: this machine has no CUDA device: use auto or cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise LokiError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    return torch.device(device)


def is_main_process() -> bool:
    """Whether this process is the one that prints; known before the processes have joined."""
    return int(os.environ.get("RANK", "0")) == 0


def started_alone() -> bool:
    """Whether `accelerate launch` was asked for several processes but started one.

    That is what it does without GPUs, unless `--multi_gpu` is given (which needs none).
    """
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ


def _part() -> None:
    """Leave the other processes in order: threads of theirs that are torn down with Python now and then abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _portable(error: Exception, rank: int) -> Exception:
    """`error` as another process can receive it; with its traceback, unless it is one line for the user."""
    text = "".join(traceback.format_exception(error))
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever goes wrong, the text is what counts
        return RuntimeError(f"process {rank} failed:\n{text}")
    if not isinstance(error, LokiError):
        copy.add_note(f"in process {rank}:\n{text}")
    return copy
