"""Errors that reach the user as one line.

Raise `LokiError` for anything the user can mend: its text says what is wrong, with which value, and what to do.
The command line prints it without a traceback and leaves with `exit_code`.
"""

MOST = 2**31 - 1  # what libraries can count to
LAST_SEED = 2**32 - 1  # of NumPy


class LokiError(Exception):
    """Bad usage or input. The command line exits with code 2."""

    exit_code = 2


class CheckFailed(LokiError):  # noqa: N818 - it names what happened, as pytest and click do
    """A check that the user asked for did not hold. The command line exits with code 1."""

    exit_code = 1


class RankError(LokiError):
    """A failure of one process among several, which only this process can report."""


def require_seed(settings: object) -> None:
    """Check the field `seed`.

    Raises:
        LokiError: if it is no seed of NumPy.
    """
    require(settings, "seed", 0 <= getattr(settings, "seed") <= LAST_SEED, f"from 0 to {LAST_SEED}")  # noqa: B009


def require(settings: object, name: str, holds: bool, wanted: str) -> None:
    """Check a value of a settings class whose fields are called as the options of the command line.

    Args:
        settings: that has the value.
        name: of the field.
        holds: whether the value is allowed.
        wanted: which values are, after "it must be".

    Raises:
        LokiError: if `holds` is not true.
    """
    if not holds:
        option = "--" + name.replace("_", "-")
        value = repr(getattr(settings, name))[:40]  # not all digits of a number without end
        raise LokiError(f"{option} {value} is out of range: it must be {wanted}")


def require_counts(settings: object, *names: str, least: int = 1) -> None:
    """Check fields that count something, which None leaves open.

    Args:
        settings: that has them.
        names: of the fields.
        least: the smallest count.

    Raises:
        LokiError: if one is below `least`, or more than libraries can count to.
    """
    for name in names:
        value = getattr(settings, name)
        require(settings, name, value is None or least <= value <= MOST, f"from {least} to {MOST:,}")


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of a device or of the machine is full.

    By name and text, so that PyTorch need not be imported: its CPU allocator raises a plain `RuntimeError`.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def one_line(error: BaseException, limit: int = 200) -> str:
    """An error's text on one line, cut at `limit` characters, for use inside a message of our own."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
