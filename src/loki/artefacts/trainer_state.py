"""The log of a training, as Transformers' trainer keeps it in trainer_state.json."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from loki.inputs import Strict, checked, read_json

STATE = "trainer_state.json"


def _drawable(loss: float) -> float:
    if abs(loss) > 1e9:  # NaN is not
        raise ValueError("should be a loss")
    return loss


_Loss = Annotated[float, AfterValidator(_drawable)] | None


class _Entry(Strict):
    step: Annotated[int, Field(ge=0, lt=2**40)] = 0
    loss: _Loss = None
    eval_loss: _Loss = None
    train_loss: _Loss = None


class _State(Strict):
    global_step: Annotated[int, Field(ge=0, lt=2**40)] = 0
    log_history: list[_Entry] = Field(default_factory=list)


def read_trainer_state(path: Path) -> dict[str, Any]:
    """What a trainer_state.json holds; its `log_history` and `global_step` have been checked.

    Raises:
        LokiError: if it is missing or damaged.
    """
    value = read_json(path, what="state of the trainer")
    checked(_State, value, f"state of the trainer {path}", advice="it is damaged: copy it again, or train again")
    return {"global_step": 0, "log_history": [], **value}
